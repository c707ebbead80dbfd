package qualys_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"qualys-sentinel/handler/internal/qualys"
	"qualys-sentinel/handler/internal/redact"
)

// login is credentials that may be reloaded.
type login struct {
	mu      sync.Mutex
	user    string
	pass    string
	next    string // password after a reload
	reloads int
}

func (l *login) Login() (string, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.user, l.pass
}

func (l *login) Reload(context.Context) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reloads++
	changed := l.next != "" && l.next != l.pass
	if changed {
		l.pass = l.next
	}
	return changed, nil
}

// Bad logins lock the account: one try, one more if the password was rotated,
// then none until it changes.
func TestBadLogin(t *testing.T) {
	calls, want := 0, "new"
	cl, l := client(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		if _, pass, _ := r.BasicAuth(); pass == want {
			io.WriteString(w, page(""))
			return
		}
		w.WriteHeader(401)
		io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><CODE>2000</CODE><TEXT>Bad Login/Password</TEXT></RESPONSE></SIMPLE_RETURN>")
	})
	_, _, err := ask(cl)
	checkError(t, err, qualys.BadLogin, 0, "Bad Login")
	if _, _, err = ask(cl); calls != 1 {
		t.Errorf("%d calls with the refused password, %v; want 1", calls, err)
	}
	checkError(t, err, qualys.BadLogin, 0, "refused before")
	// It may have been a good one: it is tried again, ever more seldom.
	start, now := time.Now(), time.Now()
	cl.Now = func() time.Time { return now }
	for hour := range 60 {
		now = start.Add(time.Duration(hour+1) * time.Hour)
		_, _, err = ask(cl)
		checkError(t, err, qualys.BadLogin, 0, "")
	}
	if calls != 7 { // in hours: 0, 1, 3, 7, 15, 31, 55
		t.Errorf("%d calls with the refused password in 60 hours, want 7", calls)
	}
	calls = 1
	l.mu.Lock()
	l.next = "new"
	l.mu.Unlock()
	if _, _, err = ask(cl); err != nil || calls != 2 {
		t.Errorf("after the rotation: %v, %d calls", err, calls)
	}
	// A rotation that Qualys notices first is found by one reload.
	want = "newer"
	l.mu.Lock()
	l.next = "newer"
	l.mu.Unlock()
	if _, _, err = ask(cl); err != nil || calls != 4 {
		t.Errorf("rotated under way: %v, %d calls, want 4", err, calls)
	}
}

// failingLogin cannot be read anew.
type failingLogin struct{ login }

func (*failingLogin) Reload(context.Context) (bool, error) {
	return false, errors.New("vault unreachable")
}

// A vault that cannot be reached is no reason to try a refused password again.
func TestBadLoginWithoutVault(t *testing.T) {
	calls := 0
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.WriteHeader(401)
	})
	cl.Credentials = &failingLogin{login{user: "u", pass: "p"}}
	for range 3 {
		if _, _, err := ask(cl); err == nil || !strings.Contains(err.Error(), "vault unreachable") {
			t.Errorf("got %v", err)
		}
	}
	if calls != 1 {
		t.Errorf("the refused password was sent %d times", calls)
	}
}

// A refusal may come in a document with status 200.
func TestBadLoginInADocument(t *testing.T) {
	calls := 0
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		calls++
		io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><CODE>2000</CODE><TEXT>Bad Login/Password</TEXT></RESPONSE></SIMPLE_RETURN>")
	})
	for range 2 {
		_, _, err := ask(cl)
		checkError(t, err, qualys.BadLogin, 0, "")
	}
	if calls != 1 {
		t.Errorf("the refused password was sent %d times", calls)
	}
}

// The password is changed while two datasets ask at once: the one that is
// refused last must not take the new one for refused.
func TestRotationMeetsTwoCalls(t *testing.T) {
	var mu sync.Mutex
	old, rotated := 0, false
	both := make(chan struct{})
	cl, l := client(t, func(w http.ResponseWriter, r *http.Request) {
		if _, pass, _ := r.BasicAuth(); pass != "new" && rotated {
			mu.Lock()
			if old++; old == 2 {
				close(both)
			}
			mu.Unlock()
			<-both
			w.WriteHeader(401)
			io.WriteString(w, badLogin)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/detection/") {
			io.WriteString(w, page(""))
		} else {
			io.WriteString(w, `<HOST_LIST_OUTPUT><RESPONSE><ID_SET><ID>5</ID></ID_SET></RESPONSE></HOST_LIST_OUTPUT>`)
		}
	})
	if _, _, err := ask(cl); err != nil { // the old one is known to be good
		t.Fatal(err)
	}
	rotated, l.next = true, "new"
	errs := make(chan error, 2)
	go func() { _, _, err := ask(cl); errs <- err }()
	go func() { errs <- askHosts(cl) }()
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if _, _, err := ask(cl); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A bad login is left alone as long when Qualys tells it with status 200.
func TestBadLoginWithStatus200(t *testing.T) {
	calls := 0
	cl, _ := client(t, func(w http.ResponseWriter, _ *http.Request) {
		calls++
		io.WriteString(w, badLogin)
	})
	start, now := time.Now(), time.Now()
	cl.Now = func() time.Time { return now }
	for hour := range 61 {
		now = start.Add(time.Duration(hour) * time.Hour)
		_, _, err := ask(cl)
		checkError(t, err, qualys.BadLogin, 0, "")
	}
	if calls != 7 {
		t.Errorf("%d calls in 60 hours, want 7", calls)
	}
}

// A server that sends back what it was sent does not make the login a part of an error
// or of a warning.
func TestEchoedLogin(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter, header string){
		"in a text": func(w http.ResponseWriter, h string) {
			w.WriteHeader(500)
			io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><TEXT>"+h+"</TEXT></RESPONSE></SIMPLE_RETURN>")
		},
		"in a code": func(w http.ResponseWriter, h string) {
			w.WriteHeader(400)
			io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><CODE>"+h+"</CODE></RESPONSE></SIMPLE_RETURN>")
		},
		"in a warning": func(w http.ResponseWriter, h string) {
			io.WriteString(w, page("<HOST_LIST><HOST><ID>1</ID></HOST></HOST_LIST><WARNING><TEXT>"+h+"</TEXT></WARNING>"))
		},
		"in a root's name": func(w http.ResponseWriter, h string) {
			io.WriteString(w, "<"+strings.NewReplacer("Basic ", "", "=", "", "+", "", "/", "").Replace(h)+"/>")
		},
		"in a redirect": func(w http.ResponseWriter, h string) {
			w.Header().Set("Location", "https://"+strings.TrimRight(strings.TrimPrefix(h, "Basic "), "=")+".example/")
			w.WriteHeader(302)
		},
		"in place of a list": func(w http.ResponseWriter, h string) { io.WriteString(w, page("<ERROR>"+h+"</ERROR>")) },
		"between elements":   func(w http.ResponseWriter, h string) { io.WriteString(w, page(h)) },
		"in an attribute":    func(w http.ResponseWriter, h string) { io.WriteString(w, page(`<HOST_LIST login="`+h+`"/>`)) },
		"in the time": func(w http.ResponseWriter, h string) {
			io.WriteString(w, strings.Replace(page(""), "2026-11-01T00:00:00Z", strings.TrimPrefix(h, "Basic "), 1))
		},
		"decoded": func(w http.ResponseWriter, _ string) {
			w.WriteHeader(500)
			io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><TEXT>no user user:canary-pass-äö+&amp;%</TEXT></RESPONSE></SIMPLE_RETURN>")
		},
		"cut in its middle": func(w http.ResponseWriter, h string) {
			w.WriteHeader(500)
			io.WriteString(w, "<SIMPLE_RETURN><RESPONSE><TEXT>"+strings.Repeat("x", 480)+h+"</TEXT></RESPONSE></SIMPLE_RETURN>")
		},
		"in a declared encoding": func(w http.ResponseWriter, h string) {
			io.WriteString(w, `<?xml version="1.0" encoding="`+strings.TrimPrefix(h, "Basic ")+`"?><a>ä</a>`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			sent := ""
			cl, _ := client(t, func(w http.ResponseWriter, r *http.Request) {
				sent = r.Header.Get("Authorization")
				answer(w, sent)
			})
			cl.Redactor, cl.Memory = &redact.Redactor{}, &shared{}
			_, p, err := ask(cl)
			said := fmt.Sprintf("%v %+v %s", err, p, cl.Memory.(*shared).doc)
			login := strings.TrimPrefix(sent, "Basic ")
			for _, secret := range []string{login[:12], login[8:20], "canary-pass"} {
				if strings.Contains(said, secret) {
					t.Errorf("%q is in %s", secret, said)
				}
			}
			if err == nil && p.Warning == "" {
				t.Error("neither an error nor a warning")
			}
		})
	}
}
