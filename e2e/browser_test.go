//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"qualys-sentinel/e2e/azurite"
	"qualys-sentinel/handler/simulation"
)

// browser is a tab of a headless Chromium.
type browser struct {
	t   *testing.T
	ctx context.Context
	// alerts counts dialogs: nothing on the page may open one.
	alerts atomic.Int64
}

// startBrowser starts Chromium: CHROMIUM, or the one on the PATH.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	program := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil && program == "" {
			program = path
		}
	}
	if program == "" {
		azurite.Missing(t, "chromium", "no Chromium on the PATH; set CHROMIUM to one")
	}
	b := &browser{t: t}
	thrown := make(chan string, 100)
	ctx, cancel := chromedp.NewContext(context.Background(),
		chromedp.WithAllocatorOptions(chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
			chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("lang", "en-GB")),
		chromedp.WithErrorf(func(string, ...any) {}), // events newer than the library
		chromedp.WithListener(func(event any) {
			switch e := event.(type) {
			case *page.EventJavascriptDialogOpening:
				b.alerts.Add(1)
			case *runtime.EventExceptionThrown:
				thrown <- e.ExceptionDetails.Text
			}
		}))
	b.ctx = ctx
	t.Cleanup(func() {
		cancel()
		for len(thrown) > 0 {
			t.Errorf("the page threw: %s", <-thrown)
		}
	})
	if err := chromedp.Do(ctx); err != nil { // its context is the browser's
		t.Fatal(err)
	}
	return b
}

// limit is how long the browser may take for anything.
const limit = time.Minute

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// eval evaluates an expression of the page.
func (b *browser) eval(expression string, to any) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string]("JSON.stringify(("+expression+") ?? null)"))
	if err == nil && to != nil {
		err = json.Unmarshal([]byte(text), to)
	}
	if err != nil {
		b.t.Fatalf("%.200s: %v", expression, err)
	}
}

func (b *browser) text(selector string) string {
	b.t.Helper()
	var text string
	b.eval(fmt.Sprintf(`[...document.querySelectorAll(%q)].map(e => e.innerText).join("\n")`, selector), &text)
	return text
}

// wants waits until a part of the page shows all of some texts.
func (b *browser) wants(selector string, texts ...string) {
	b.t.Helper()
	azurite.Eventually(b.t, time.Minute, fmt.Sprintf("%s shows %q", selector, texts), func() error {
		shown := strings.ToLower(b.text(selector)) // headings are in capitals
		for _, text := range texts {
			if !strings.Contains(shown, strings.ToLower(text)) {
				return fmt.Errorf("it shows %q", shown)
			}
		}
		return nil
	})
}

// focusOn presses Tab until an element has the focus.
func (b *browser) focusOn(selector string) {
	b.t.Helper()
	for range 60 {
		var there bool
		b.eval(fmt.Sprintf(`document.activeElement.matches(%q)`, selector), &there)
		if there {
			return
		}
		b.do(chromedp.KeyEvent(kb.Tab))
	}
	b.t.Fatalf("%s cannot be reached by keyboard", selector)
}

// look emulates a screen, in light or dark.
func (b *browser) look(width, height int64, scheme string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600})
	if err == nil {
		_, err = chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// picture keeps a screenshot of the whole page among the outputs or, with
// SCREENSHOTS set, where the README shows some of them.
func (b *browser) picture(name string) {
	b.t.Helper()
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatal(err)
	}
	dir := outputDir(b.t)
	if os.Getenv("SCREENSHOTS") != "" && slices.Contains([]string{"status-light", "status-dark", "check"}, name) {
		dir = filepath.Join("..", "docs")
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// unreadable lists texts whose contrast is below 4.5 (WCAG 2.2, 1.4.3).
const unreadable = `(() => {
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return { r: m[0], g: m[1], b: m[2], a: m.length > 3 ? m[3] : 1 }; };
  const lum = c => { const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }; return .2126 * f(c.r) + .7152 * f(c.g) + .0722 * f(c.b); };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.a > .99) return c; } return { r: 255, g: 255, b: 255 }; };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.nodeValue.trim() || !e.checkVisibility() || e.closest('script,style,noscript')) continue;
    const a = lum(parse(getComputedStyle(e).color)), b = lum(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(ratio.toFixed(2) + ' ' + walk.currentNode.nodeValue.trim().slice(0, 40));
  }
  return bad;
})()`

// evil is the name of a host that is on nobody's side.
const evil = `<img src=x onerror=alert(1)>`

// putState writes a document into the state.
func (s *services) putState(name string, doc any) {
	s.t.Helper()
	text, err := json.Marshal(doc)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := container.NewClientFromConnectionString(s.storage, s.container, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := c.NewBlockBlobClient(name).UploadBuffer(context.Background(), text, nil); err != nil {
		s.t.Fatal(err)
	}
}

// The status page in a real browser, through the real host that asks for keys:
// it shows a running sync's progress, starts one, shows a failed check with its
// advice, and makes text of whatever the documents hold.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	s := startServices(t, 400, 30)
	s.now = time.Now().UTC().Truncate(time.Second) // watermarks of today
	s.setKnowledge(&simulation.Knowledge{Seed: 2, Size: 1200})
	s.environ["kbPageSize"] = "100"
	s.environ["filterParameters"] = "&truncation_limit=50"
	teams := s.teams(2)
	teams[1].asks["name"] = "Team " + evil
	teams[0].asks["name"] = strings.Repeat("W", 50) // as wide as a name may be
	b := startBrowser(t)
	h := startHost(t, s, "--enableAuth")
	key := s.functionKey(h)
	c := h.caller()
	c.key = key

	// A run to look at.
	var begun simulation.SyncDocument
	c.call("POST", "/api/sync/vm", "").read(t, &begun)
	c.completes(begun.ID)
	// The key is used, and shown nowhere.
	b.look(1180, 900, "light")
	b.do(chromedp.Navigate(c.origin + "/api/status?code=" + key))
	b.wants("#datasets", "VM detections", "KnowledgeBase", "Complete up to", "Last runs")
	var address string
	b.eval(`location.href`, &address)
	var everything string
	b.eval(`document.documentElement.outerHTML`, &everything)
	if strings.Contains(address, key) || strings.Contains(everything, key) || !strings.HasSuffix(address, "/api/status") {
		t.Errorf("the key is shown: %s", strings.ReplaceAll(address, key, "KEY"))
	}

	// Sync now, by keyboard; its progress moves, and it ends without this page.
	hold := make(chan struct{})
	var calls atomic.Int64
	s.mu.Lock()
	s.beforeIngest = func(int) {
		if calls.Add(1) == 5 {
			<-hold
		}
	}
	s.mu.Unlock()
	b.focusOn(`button[data-sync="kb"]`)
	b.do(chromedp.KeyEvent(kb.Enter))
	b.wants("#said", "Started: ")
	b.wants(".now", "running", "of 1,200 QIDs", "entries read")
	first := b.text(".now")
	var part struct{ Value, Max float64 }
	b.eval(`(p => ({ Value: p.value, Max: p.max }))(document.querySelector('progress'))`, &part)
	if part.Max != 1200 || part.Value <= 0 || part.Value >= 1200 {
		t.Errorf("progress %+v", part)
	}
	for _, scheme := range []string{"light", "dark"} {
		b.look(1180, 900, scheme)
		b.eval(`document.activeElement.blur(), document.getElementById('said').replaceChildren()`, nil)
		b.picture("status-" + scheme)
		var bad []string
		if b.eval(unreadable, &bad); len(bad) > 0 {
			t.Errorf("%s: hard to read: %v", scheme, bad)
		}
	}
	// While it goes on, another is refused in words.
	b.do(chromedp.Click(chromedp.CSS(`button[data-sync="kb"]`)))
	b.wants("#said", "a run of kb is going on")
	close(hold)
	azurite.Eventually(t, time.Minute, "the page shows the end by itself", func() error {
		if now := b.text(".now"); now != "" {
			return fmt.Errorf("%s; it was %s", now, first)
		}
		return nil
	})
	b.wants("#state", "Nothing is running")
	b.wants(`section[aria-labelledby="title-kb"]`, "complete", "1,200", "Asked for by hand")

	// A host's name is text, and nothing but text, wherever it comes from.
	began := time.Now().Add(-7 * time.Minute).UTC().Truncate(time.Second)
	s.putState("runs/vm/"+began.Format("20060102T150405Z")+"-aaaaaaaaaaaaaaaa.json", map[string]any{
		"version": 1, "run": "aaaaaaaaaaaaaaaa", "dataset": "vm", "started": began, "ended": began.Add(40 * time.Second), "outcome": "waiting",
		"reason": "host " + evil + " takes too long: qualys answered 409 code 1965", "parents": 1200, "decoded": 54000, "accepted": 54000, "retries": 3, "waitSeconds": 95,
		"isolated": []any{},
	})
	c.call("POST", "/api/sync/vm", `{"hostIds":[100001],"filterParameters":"&ag_titles=`+evil+`"}`)
	b.do(chromedp.KeyEvent(kb.F5)) // looks again
	b.wants("#datasets", "host "+evil+" takes too long", "filter &ag_titles="+evil)
	var images int
	b.eval(`document.images.length`, &images)
	if images != 0 || b.alerts.Load() != 0 {
		t.Errorf("%d images, %d dialogs: markup was taken for markup", images, b.alerts.Load())
	}

	// Integrations, of which one fails. Before there was one there was no word of them.
	var hidden bool
	if b.eval(`document.getElementById('others').hidden`, &hidden); !hidden {
		t.Error("integrations are shown, and there are none")
	}
	s.register(teams...)
	for id, outcome := range map[int]string{1: "complete", 2: "failed"} {
		s.putState(fmt.Sprintf("runs/integrations/%d/vm/%s-bbbbbbbbbbbbbbb%c.json", id, began.Format("20060102T150405Z"), 'a'+rune(id)), map[string]any{
			"version": 1, "run": fmt.Sprintf("bbbbbbbbbbbbbbb%c", 'a'+rune(id)), "dataset": "vm", "integration": fmt.Sprint(id), "started": began, "ended": began.Add(time.Second), "outcome": outcome,
			"reason": map[string]string{"failed": "log analytics answered 403 InvalidAuthorization " + evil}[outcome], "accepted": 4321, "isolated": []any{},
		})
	}
	b.do(chromedp.KeyEvent(kb.F5))
	b.wants("#others", "1 needs attention", strings.Repeat("W", 50), "Team "+evil, "4,321", "Confirmed; severity 3, 4, 5", "answered 403 InvalidAuthorization "+evil)
	b.wants("#state", "Integration Team "+evil+": needs attention")
	if b.eval(`document.images.length`, &images); images != 0 || b.alerts.Load() != 0 {
		t.Errorf("%d images, %d dialogs: markup was taken for markup", images, b.alerts.Load())
	}
	var hiddenPart bool
	b.eval(`(r => r.scrollWidth > r.clientWidth)(document.querySelector('#others .scroll'))`, &hiddenPart)
	if b.picture("integrations"); hiddenPart {
		t.Error("a part of the integrations is to be seen by scrolling only")
	}

	// A failed check, with its advice.
	s.qualys.SetPassword("another")
	b.focusOn("#check")
	b.do(chromedp.KeyEvent(" "))
	b.wants("#checked", "failed", "Qualys: credentials", "answered 401 code 2000", "To do: ", "check apiUsername and apiPassword", "It cannot work yet", "skipped")
	var focus string
	b.eval(`document.activeElement.id`, &focus)
	if focus != "checked-title" {
		t.Errorf("the focus is on %q, not where the result is", focus)
	}
	b.picture("check")

	// A phone: nothing is wider than the screen.
	for _, scheme := range []string{"light", "dark"} {
		b.look(360, 740, scheme)
		var width, wide int
		b.eval(`document.documentElement.scrollWidth`, &wide)
		b.eval(`innerWidth`, &width)
		if wide > width {
			var widest string
			b.eval(`[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className).slice(0, 5).join(' ')`, &widest)
			t.Errorf("%d wide on a screen of %d: %s", wide, width, widest)
		}
		var bad []string
		if b.eval(unreadable, &bad); len(bad) > 0 {
			t.Errorf("%s: hard to read: %v", scheme, bad)
		}
		b.picture("phone-" + scheme)
	}

	// The story of one sync has an address.
	var doc simulation.StatusDocument
	c.call("GET", "/api/status", "").read(t, &doc)
	b.look(1180, 900, "light")
	b.do(chromedp.Navigate(c.origin + "/api/status/" + doc.Datasets[1].Syncs[0].ID + "?code=" + key))
	b.wants("#one", "complete", "what is new", doc.Datasets[1].Syncs[0].ID)

	// Without a key the host answers; with a wrong one the page says so.
	b.do(chromedp.Navigate(c.origin + "/api/status?code=" + key))
	b.wants("#datasets", "Last runs")
	b.eval(`(window.fetch = () => Promise.resolve(new Response('', { status: 401 }))) && 1`, nil)
	b.do(chromedp.Click(chromedp.CSS(`#all`)))
	b.wants("#said", "The function key is not accepted")
	if b.alerts.Load() != 0 {
		t.Errorf("%d dialogs", b.alerts.Load())
	}
	if out := h.output(); strings.Contains(out, key) {
		t.Error("the key is in the log")
	}
}
