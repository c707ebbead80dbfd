package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/ingest"
	"qualys-sentinel/handler/internal/settings"
)

// MaxIntegrations is how many there may be: their batches share the memory of the
// smallest plan.
const MaxIntegrations = 50

// Changes are made one at a time; one takes a second or two.
const (
	changeTries = 10
	changePause = 500 * time.Millisecond
)

// Keys keeps the keys of workspaces.
type Keys interface {
	// Put keeps the key of an integration, in a place of its own, and returns where.
	Put(ctx context.Context, id int64, key string) (secret string, err error)
	// Get returns a key.
	Get(ctx context.Context, secret string) (string, error)
	// Remove removes it. One that is not there is no error.
	Remove(ctx context.Context, secret string) error
}

// A Registry is where the integrations are kept.
type Registry struct {
	Store checkpoint.Store
	// Keys of the workspaces; nil: there is no vault for them.
	Keys Keys
	// Local allows addresses of this machine, as a simulator has.
	Local bool
	Clock ingest.Clock
	Log   *zap.Logger
}

var (
	// ErrNotFound is the error for an id that there is not.
	ErrNotFound = errors.New("there is no such integration; the list of all tells their ids")
	// ErrBusy is the error for a change while others go on.
	ErrBusy = errors.New("another change of the integrations is going on: try again in a minute")
	// ErrNoVault is the error for a key where there is no vault.
	ErrNoVault = errors.New("there is no vault to keep the workspace's key in: set integrationVault to the address of a Key Vault in which the app has the role Key Vault Secrets Officer, or use a data collection rule, which needs no key")
)

const (
	folder      = "integrations/"
	numbersName = folder + "ids.json"
	document    = ".json"
)

func name(id int64) string { return fmt.Sprintf("%s%d%s", folder, id, document) }

// List returns all integrations, by their ids. Those that cannot be read are in the
// error; the others are there all the same.
func (r *Registry) List(ctx context.Context) (list []*Integration, err error) {
	names, err := r.Store.List(ctx, folder)
	if err != nil {
		return nil, fmt.Errorf("list the integrations: %w", err)
	}
	var errs []error
	for _, n := range names {
		id, isID := idOf(n)
		if !isID {
			continue
		}
		i, err := r.Get(ctx, id)
		switch {
		case errors.Is(err, ErrNotFound): // deleted since, or not there yet
		case err != nil:
			errs = append(errs, err)
		default:
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b *Integration) int { return int(a.ID - b.ID) })
	return list, errors.Join(errs...)
}

// idOf is the id that a document's name says.
func idOf(name string) (int64, bool) {
	text, _ := strings.CutSuffix(path.Base(name), document)
	id, ok := ParseID(text)
	return id, ok && name == folder+text+document
}

// ParseID reads an id, as it is written in one way only.
func ParseID(text string) (int64, bool) {
	id, err := strconv.ParseInt(text, 10, 64)
	return id, err == nil && id > 0 && text == strconv.FormatInt(id, 10)
}

// Get returns one; ErrNotFound if there is none of the id.
func (r *Registry) Get(ctx context.Context, id int64) (*Integration, error) {
	doc, err := checkpoint.Read(ctx, r.Store, name(id))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(doc) == 0 { // being made
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read the integration: %w", err)
	}
	return decode(doc, id)
}

// A DamagedError is a document that cannot be read: people have written into it, or a
// newer version of this program.
type DamagedError struct {
	Name string
	Text string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s is damaged: %s; correct or delete it", e.Name, e.Text)
}

// decode reads a document. What people have written into it is checked as what they
// ask for is.
func decode(doc []byte, id int64) (*Integration, error) {
	damaged := func(err error) error { return &DamagedError{name(id), err.Error()} }
	i := Integration{document: doc}
	if err := json.Unmarshal(doc, &i); err != nil {
		return nil, damaged(err)
	}
	if i.Version != documentVersion {
		return nil, damaged(fmt.Errorf("it has version %d, this program knows %d", i.Version, documentVersion))
	}
	again, err := json.Marshal(i.Fields)
	if err == nil {
		_, err = parseFields(again)
	}
	if err == nil {
		err = i.check(i.KeySecret != "")
	}
	if err == nil && i.ID != id {
		err = fmt.Errorf("it says it is %d", i.ID)
	}
	if err != nil {
		return nil, damaged(err)
	}
	return &i, nil
}

// parseFields reads fields as a document has them: of severities and the lowest, both.
func parseFields(doc []byte) (*Change, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(doc, &members); err != nil {
		return nil, err
	}
	if _, ok := members["severities"]; ok {
		delete(members, "minSeverity")
	}
	doc, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	return Parse(doc)
}

// Add makes an integration.
func (r *Registry) Add(ctx context.Context, c *Change) (added *Integration, err error) {
	fields, err := c.apply(Fields{}, false)
	if err == nil {
		err = r.allowed(&fields)
	}
	if err == nil && c.key != "" && r.Keys == nil {
		err = ErrNoVault
	}
	if err != nil {
		return nil, err
	}
	err = r.change(ctx, func(ctx context.Context, n *numbers) error {
		if err := r.unique(ctx, fields.Name, 0); err != nil {
			return err
		}
		next, err := n.take(ctx, r.Store)
		if err != nil {
			return err
		}
		now := r.Clock.Now().UTC().Truncate(time.Second)
		i := &Integration{Version: documentVersion, ID: next, Created: now, Changed: now, Fields: fields}
		if err := r.save(ctx, n, i, nil, c.key); err != nil {
			return err
		}
		added = i
		return nil
	})
	return added, err
}

// Update changes one.
func (r *Registry) Update(ctx context.Context, id int64, c *Change) (updated *Integration, err error) {
	err = r.change(ctx, func(ctx context.Context, n *numbers) error {
		old, err := r.Get(ctx, id)
		if err != nil {
			return err
		}
		i := *old
		if i.Fields, err = c.apply(old.Fields, old.KeySecret != ""); err != nil {
			return err
		}
		if err := r.allowed(&i.Fields); err != nil {
			return err
		}
		if !strings.EqualFold(i.Name, old.Name) {
			if err := r.unique(ctx, i.Name, id); err != nil {
				return err
			}
		}
		if !sameDestination(&old.Fields, &i.Fields) {
			i.Generation++ // nothing has arrived there yet
		}
		i.Changed = r.Clock.Now().UTC().Truncate(time.Second)
		if err := r.save(ctx, n, &i, old, c.key); err != nil {
			return err
		}
		updated = &i
		return nil
	})
	return updated, err
}

// Delete removes one, even if its document cannot be read. Of a run that is going on
// for it no further batch is sent. Its dead letters stay.
func (r *Registry) Delete(ctx context.Context, id int64) error {
	return r.change(ctx, func(ctx context.Context, n *numbers) error {
		i, err := r.Get(ctx, id)
		var damaged *DamagedError
		if errors.As(err, &damaged) {
			i, err = r.salvage(ctx, id), nil
		}
		if err != nil {
			return err
		}
		if err := n.confirm(ctx); err != nil {
			return err
		}
		if err := r.Store.Delete(ctx, name(id)); err != nil {
			return fmt.Errorf("delete the integration: %w", err)
		}
		r.removeKey(ctx, i)
		return nil
	})
}

// salvage is what is needed of a document that cannot be read.
func (r *Registry) salvage(ctx context.Context, id int64) *Integration {
	i := &Integration{ID: id}
	doc, err := checkpoint.Read(ctx, r.Store, name(id))
	if err == nil {
		err = json.Unmarshal(doc, &struct{ KeySecret *string }{&i.KeySecret})
	}
	if err != nil {
		r.Log.Warn("if it had a key, that is left in the vault", zap.String("integration", i.Number()), zap.Error(err))
	}
	return i
}

// allowed says what this registry does not take.
func (r *Registry) allowed(f *Fields) error {
	if u := f.Address(); u != nil && !r.Local && settings.Loopback(u) {
		return &InvalidError{[]string{"logAnalyticsUri: it is this machine's own"}}
	}
	return nil
}

// change holds the ids during a change: one is made at a time.
func (r *Registry) change(ctx context.Context, do func(ctx context.Context, n *numbers) error) error {
	lease, err := r.hold(ctx)
	if err != nil {
		return err
	}
	defer r.release(ctx, lease)
	doc, err := lease.Load(ctx)
	if err != nil {
		return fmt.Errorf("read the ids of the integrations: %w", err)
	}
	n := &numbers{Version: documentVersion, Next: 1, lease: lease}
	if len(doc) > 0 {
		if err := json.Unmarshal(doc, n); err != nil || n.Version != documentVersion || n.Next < 1 {
			return fmt.Errorf("%s is damaged: write {\"version\": %d, \"next\": N} into it, N being larger than all ids that were ever used", numbersName, documentVersion)
		}
	}
	return do(ctx, n)
}

// numbers is the document that hands ids out, and that is held during a change.
type numbers struct {
	Version int `json:"version"`
	// Next is the id of the next integration: one that was never used.
	Next int64 `json:"next"`

	lease checkpoint.Lease
}

// take returns an id. It is not used again, whatever becomes of it.
func (n *numbers) take(ctx context.Context, store checkpoint.Store) (int64, error) {
	// Whoever has deleted this document has not deleted what the ids have left behind.
	for prefix, idOf := range map[string]func(name string) (int64, bool){folder: idOf, checkpoints: idOfCheckpoint} {
		names, err := store.List(ctx, prefix)
		if err != nil {
			return 0, fmt.Errorf("list the integrations: %w", err)
		}
		for _, name := range names {
			if id, ok := idOf(name); ok {
				n.Next = max(n.Next, id+1)
			}
		}
	}
	id := n.Next
	n.Next++
	return id, n.confirm(ctx)
}

// checkpoints begins the names of checkpoints of integrations; see Destination.
const checkpoints = "checkpoints/" + destination

// idOfCheckpoint is the id of the integration that a checkpoint is of.
func idOfCheckpoint(name string) (int64, bool) {
	text, _, _ := strings.Cut(strings.TrimPrefix(name, checkpoints), "/")
	text, _, _ = strings.Cut(text, "-")
	return ParseID(text)
}

// confirm saves the document. It fails if the hold was lost meanwhile, as by a process
// that was frozen: somebody else may have changed anything since.
func (n *numbers) confirm(ctx context.Context) error {
	doc, err := json.Marshal(n)
	if err == nil {
		err = n.lease.Save(ctx, doc)
	}
	if errors.Is(err, checkpoint.ErrLost) {
		return ErrBusy
	}
	if err != nil {
		return fmt.Errorf("save the ids of the integrations: %w", err)
	}
	return nil
}

// tidyTime is how long the end of a change may take.
const tidyTime = 15 * time.Second

func (r *Registry) hold(ctx context.Context) (checkpoint.Lease, error) {
	for tries := 1; ; tries++ {
		lease, err := r.Store.Acquire(ctx, numbersName)
		switch {
		case err == nil:
			return lease, nil
		case !errors.Is(err, checkpoint.ErrHeld):
			return nil, fmt.Errorf("hold the integrations: %w", err)
		case tries == changeTries:
			return nil, ErrBusy
		}
		if err := r.Clock.Sleep(ctx, changePause); err != nil {
			return nil, err
		}
	}
}

// unique says that another integration has the name, or that there are too many. One
// that cannot be read keeps nobody from anything.
func (r *Registry) unique(ctx context.Context, name string, id int64) error {
	list, err := r.List(ctx)
	var damaged *DamagedError
	if err != nil && !errors.As(err, &damaged) {
		return err
	}
	others := 0
	for _, i := range list {
		if i.ID == id {
			continue
		}
		if others++; strings.EqualFold(i.Name, name) {
			return &InvalidError{[]string{fmt.Sprintf("name: integration %d has it already", i.ID)}}
		}
	}
	if others >= MaxIntegrations {
		return &InvalidError{[]string{fmt.Sprintf("there are %d integrations already: more need another function app", others)}}
	}
	return nil
}

// save writes the key to the vault, then the document. A key that no document names
// any more is removed.
func (r *Registry) save(ctx context.Context, n *numbers, i, old *Integration, key string) (err error) {
	if i.ByRule() {
		i.KeySecret = ""
	} else if key != "" {
		if r.Keys == nil {
			return ErrNoVault
		}
		if i.KeySecret, err = r.Keys.Put(ctx, i.ID, key); err != nil {
			return fmt.Errorf("keep the workspace's key: %w", err)
		}
	}
	if err = n.confirm(ctx); err == nil {
		err = r.write(ctx, i, old)
	}
	switch changed := old == nil || i.KeySecret != old.KeySecret; {
	case errors.Is(err, errUncertain) && changed:
		r.Log.Warn("a key is kept in the vault that may not be needed", zap.String("integration", i.Number()), zap.String("secret", i.KeySecret))
		return err
	case err != nil && changed:
		r.removeKey(ctx, i)
		return err
	case err != nil:
		return err
	}
	if old != nil && i.KeySecret != old.KeySecret {
		r.removeKey(ctx, old)
	}
	return nil
}

// write replaces the document of old, nil: none, unless somebody has changed it since
// it was read. Behind an error other than errUncertain it is as it was.
func (r *Registry) write(ctx context.Context, i, old *Integration) error {
	doc, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the integration: %w", err)
	}
	doc = append(doc, '\n')
	lease, err := r.Store.Acquire(ctx, name(i.ID))
	if errors.Is(err, checkpoint.ErrHeld) {
		return ErrBusy
	}
	if err != nil {
		return fmt.Errorf("hold the integration: %w", err)
	}
	defer r.release(ctx, lease)
	now, err := lease.Load(ctx)
	if err != nil {
		return fmt.Errorf("read the integration: %w", err)
	}
	var before []byte
	if old != nil {
		before = old.document
	}
	if !bytes.Equal(now, before) {
		return ErrBusy
	}
	if err := lease.Save(ctx, doc); err != nil {
		// It may have been saved all the same: then that is how it is.
		fresh, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
		defer cancel()
		there, readErr := checkpoint.Read(fresh, r.Store, name(i.ID))
		switch {
		case readErr == nil && bytes.Equal(there, doc):
			return nil
		case readErr != nil && !errors.Is(readErr, fs.ErrNotExist):
			return fmt.Errorf("%w: %w", errUncertain, err)
		}
		return fmt.Errorf("save the integration: %w", err)
	}
	return nil
}

// errUncertain is the error of a change that may have been made all the same.
var errUncertain = errors.New("it is not known whether the integration is saved: look at the list of all")

// release lets go. What is done is done.
func (r *Registry) release(ctx context.Context, lease checkpoint.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
	defer cancel()
	if err := lease.Release(ctx); err != nil {
		r.Log.Warn("a hold on the integrations is not released; it ends by itself within a minute", zap.Error(err))
	}
}

// removeKey removes the key of an integration that needs it no more. It must not undo
// what is done: the key is told, and can be removed by hand.
func (r *Registry) removeKey(ctx context.Context, i *Integration) {
	if i.KeySecret == "" {
		return
	}
	err := ErrNoVault
	if r.Keys != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
		defer cancel()
		err = r.Keys.Remove(ctx, i.KeySecret)
	}
	if err != nil {
		r.Log.Warn("a key is left in the vault that nothing needs", zap.String("integration", i.Number()), zap.String("secret", i.KeySecret), zap.Error(err))
	}
}

// Key is the key of an integration's workspace.
func (r *Registry) Key(ctx context.Context, i *Integration) (string, error) {
	if r.Keys == nil {
		return "", ErrNoVault
	}
	key, err := r.Keys.Get(ctx, i.KeySecret)
	if err != nil {
		return "", fmt.Errorf("the key of integration %d: %w", i.ID, err)
	}
	return key, nil
}
