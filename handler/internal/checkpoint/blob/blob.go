// Package blob keeps state in a container of Azure Blob Storage.
//
// A checkpoint is held by a blob lease and written with the lease id and the
// ETag last seen, so that of two runs only the holder can write, and no change
// of somebody else is overwritten. A lease that a killed run has left behind
// ends by itself within LeaseTime.
package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/appendblob"
	azblobblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"qualys-sentinel/handler/internal/checkpoint"
	"qualys-sentinel/handler/internal/redact"
	"qualys-sentinel/handler/internal/turn"
)

const (
	// DefaultLeaseTime is the longest lease that ends by itself: 60 s by the
	// Blob service's rules. A killed run blocks the next for no longer.
	DefaultLeaseTime = 60 * time.Second
	// briefLease is the shortest that the Blob service knows.
	briefLease = 15 * time.Second
	// renewals is how often a lease is renewed in its time: two may fail.
	renewals = 3
)

// Store is a blob container.
type Store struct {
	container *container.Client
	// LeaseTime between 15 and 60 seconds; DefaultLeaseTime if zero.
	LeaseTime time.Duration

	turn    turn.Turn // of making the container
	created atomic.Bool
}

var _ checkpoint.Store = (*Store)(nil)

// New returns a store in a container, which is created where needed.
func New(c *container.Client) *Store { return &Store{container: c} }

// Brief returns a store in the same container, for documents that are held for an instant:
// where a process is killed in that instant, others wait for 15 seconds, not for a minute.
func (s *Store) Brief() *Store { return &Store{container: s.container, LeaseTime: briefLease} }

// developmentStorage is what UseDevelopmentStorage=true stands for: the public,
// well-known account of the storage emulator (Microsoft, "Use the Azurite
// emulator").
const developmentStorage = "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;" +
	"AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;" +
	"BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1"

// tryTimeout ends a call that hangs: documents are small, blocks have 1 MiB.
const tryTimeout = 15 * time.Second

// options are those of all clients: the SDK's own retries, none of which hangs.
func options() *container.ClientOptions {
	return &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Retry: policy.RetryOptions{TryTimeout: tryTimeout, MaxRetryDelay: 10 * time.Second},
	}}
}

// FromConnectionString returns a store in a container of the account that a
// connection string names.
func FromConnectionString(connection, name string) (*Store, error) {
	if strings.EqualFold(strings.TrimRight(strings.TrimSpace(connection), ";"), "UseDevelopmentStorage=true") {
		connection = developmentStorage
	}
	c, err := container.NewClientFromConnectionString(connection, name, options())
	if err != nil {
		return nil, fmt.Errorf("storage connection string: %w", err)
	}
	return New(c), nil
}

// FromIdentity returns a store in a container of a blob service. client makes the calls;
// nil: the SDK's own.
func FromIdentity(serviceURL, name string, credential azcore.TokenCredential, client *http.Client) (*Store, error) {
	o := options()
	if client != nil {
		o.Transport = client
	}
	c, err := container.NewClient(strings.TrimRight(serviceURL, "/")+"/"+name, credential, o)
	if err != nil {
		return nil, fmt.Errorf("storage client: %w", err)
	}
	return New(c), nil
}

// ensure creates the container at the first use.
func (s *Store) ensure(ctx context.Context) error {
	if s.created.Load() {
		return nil
	}
	if err := s.turn.Take(ctx); err != nil {
		return fmt.Errorf("wait for the container for state: %w", err)
	}
	defer s.turn.Leave()
	if s.created.Load() {
		return nil
	}
	if _, err := s.container.Create(ctx, nil); err != nil && !bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		return explain("create the container for state", err)
	}
	s.created.Store(true)
	return nil
}

// forget lets the next use create the container again: somebody has deleted it.
func (s *Store) forget() {
	s.created.Store(false)
}

// Acquire implements checkpoint.Store.
func (s *Store) Acquire(ctx context.Context, name string) (checkpoint.Lease, error) {
	if err := s.ensure(ctx); err != nil {
		return nil, err
	}
	l, err := s.acquire(ctx, name)
	if bloberror.HasCode(err, bloberror.ContainerNotFound) {
		s.forget()
		if err := s.ensure(ctx); err != nil {
			return nil, err
		}
		l, err = s.acquire(ctx, name)
	}
	switch {
	case bloberror.HasCode(err, bloberror.LeaseAlreadyPresent):
		return nil, checkpoint.ErrHeld
	case err != nil:
		return nil, explain("lease "+name, err)
	}
	return l, nil
}

// acquire is Acquire with the SDK's errors.
func (s *Store) acquire(ctx context.Context, name string) (*blobLease, error) {
	client := s.container.NewBlockBlobClient(name)
	held, err := lease.NewBlobClient(client, nil)
	if err != nil {
		return nil, fmt.Errorf("lease client: %w", err)
	}
	leaseTime := s.LeaseTime
	if leaseTime == 0 {
		leaseTime = DefaultLeaseTime
	}
	seconds := int32(leaseTime / time.Second)
	asked := time.Now()
	_, err = held.AcquireLease(ctx, seconds, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		// A lease needs a blob: an empty document is one that says nothing yet.
		_, err = client.Upload(ctx, streaming.NopCloser(strings.NewReader("")), &blockblob.UploadOptions{
			AccessConditions: &azblobblob.AccessConditions{
				ModifiedAccessConditions: &azblobblob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)},
			},
		})
		if err != nil && !bloberror.HasCode(err, bloberror.BlobAlreadyExists, bloberror.LeaseIDMissing) {
			return nil, err
		}
		asked = time.Now()
		_, err = held.AcquireLease(ctx, seconds, nil)
	}
	if err != nil {
		return nil, err
	}
	l := &blobLease{client: client, held: held, name: name, lost: make(chan struct{}), stopped: make(chan struct{})}
	going, stop := context.WithCancel(context.WithoutCancel(ctx)) // until Release, not for the call
	l.stop = stop
	go l.renew(going, leaseTime, asked)
	return l, nil
}

// Held implements checkpoint.Store.
func (s *Store) Held(ctx context.Context, name string) (bool, error) {
	p, err := s.container.NewBlobClient(name).GetProperties(ctx, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound, bloberror.ContainerNotFound) {
		return false, nil
	}
	if err != nil {
		return false, explain("look at the lease of "+name, err)
	}
	return p.LeaseStatus != nil && *p.LeaseStatus == lease.StatusTypeLocked, nil
}

// Create implements checkpoint.Store.
func (s *Store) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	if err := s.ensure(ctx); err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	o := &object{ctx: ctx, pipe: w, done: make(chan error, 1), name: name}
	go func() {
		_, err := s.container.NewBlockBlobClient(name).UploadStream(ctx, r, &blockblob.UploadStreamOptions{Concurrency: 1})
		_ = r.CloseWithError(err) // always nil
		o.done <- err
	}()
	return o, nil
}

// Open implements checkpoint.Store.
func (s *Store) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	resp, err := s.container.NewBlobClient(name).DownloadStream(ctx, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound, bloberror.ContainerNotFound) {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return nil, explain("read "+name, err)
	}
	// A download that breaks off goes on where it stood, if the blob is the same.
	return resp.NewRetryReader(ctx, nil), nil
}

// listPage is how many names are listed by one call, where the service has up to 5,000:
// an answer is decoded whole, at some 2 KB a name.
const listPage = 1000

// List implements checkpoint.Store.
func (s *Store) List(ctx context.Context, prefix string) (names []string, err error) {
	pager := s.container.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, MaxResults: to.Ptr[int32](listPage)})
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if bloberror.HasCode(err, bloberror.ContainerNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, explain("list "+prefix, err)
		}
		for _, b := range page.Segment.BlobItems {
			names = append(names, *b.Name)
		}
	}
	return names, nil
}

// Append implements checkpoint.Store by an append blob.
func (s *Store) Append(ctx context.Context, name string, p []byte) error {
	if err := s.ensure(ctx); err != nil {
		return err
	}
	client := s.container.NewAppendBlobClient(name)
	appendBlock := func() error {
		_, err := client.AppendBlock(ctx, streaming.NopCloser(bytes.NewReader(p)), nil)
		return err
	}
	err := appendBlock()
	if bloberror.HasCode(err, bloberror.BlobNotFound) {
		_, err = client.Create(ctx, &appendblob.CreateOptions{
			AccessConditions: &azblobblob.AccessConditions{
				ModifiedAccessConditions: &azblobblob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)},
			},
		})
		if err == nil || bloberror.HasCode(err, bloberror.BlobAlreadyExists) {
			err = appendBlock()
		}
	}
	if err != nil {
		return explain("append to "+name, err)
	}
	return nil
}

// Delete implements checkpoint.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	_, err := s.container.NewBlobClient(name).Delete(ctx, nil)
	if err != nil && !bloberror.HasCode(err, bloberror.BlobNotFound, bloberror.ContainerNotFound) {
		return explain("delete "+name, err)
	}
	return nil
}

// object is a blob being written. It appears when its block list is committed.
type object struct {
	ctx  context.Context //nolint:containedctx // the contract ties the object to it
	pipe *io.PipeWriter
	done chan error
	name string
}

func (o *object) Write(p []byte) (int, error) {
	n, err := o.pipe.Write(p)
	if err != nil {
		return n, fmt.Errorf("write: %w", err)
	}
	return n, nil
}

func (o *object) Close() error {
	if err := context.Cause(o.ctx); err != nil {
		_ = o.pipe.CloseWithError(err) // always nil
		if <-o.done == nil {
			return fmt.Errorf("write %s: it was given up, but is there all the same: %w", o.name, err)
		}
		return err
	}
	// Closing a pipe never fails.
	_ = o.pipe.Close()
	if err := <-o.done; err != nil {
		return explain("write "+o.name, err)
	}
	return nil
}

type blobLease struct {
	client  *blockblob.Client
	held    *lease.BlobClient
	name    string
	etag    *azcore.ETag
	once    sync.Once
	lost    chan struct{}
	stop    context.CancelFunc // of renew
	stopped chan struct{}
}

// renew keeps the lease until Release. A renewal that is refused means that it is lost, and
// so does one that fails for almost as long as the lease lasts: another may hold it then.
// Its time counts from when it was asked for, as an answer may have been on its way for long.
func (l *blobLease) renew(ctx context.Context, leaseTime time.Duration, asked time.Time) {
	defer close(l.stopped)
	every := leaseTime / renewals
	enough := leaseTime - every/2
	next := time.NewTimer(every - time.Since(asked))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		began := time.Now()
		trying, cancel := context.WithTimeout(ctx, min(every, enough-time.Since(asked)))
		_, err := l.held.RenewLease(trying, nil)
		cancel()
		switch {
		case err == nil:
			asked = began
		case isLost(err), time.Since(asked) >= enough:
			l.once.Do(func() { close(l.lost) })
			return
		}
		next.Reset(min(every-time.Since(began), enough-time.Since(asked)))
	}
}

func (l *blobLease) Load(ctx context.Context) ([]byte, error) {
	resp, err := l.client.DownloadStream(ctx, nil)
	if err != nil {
		return nil, explain("read "+l.name, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	doc, err := io.ReadAll(io.LimitReader(resp.Body, checkpoint.MaxDocument))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l.name, err)
	}
	if resp.ETag == nil {
		return nil, fmt.Errorf("state storage: read %s: the answer has no ETag: it is not the Blob service's", l.name)
	}
	l.etag = resp.ETag
	if len(doc) == 0 {
		return nil, nil
	}
	return doc, nil
}

func (l *blobLease) Save(ctx context.Context, doc []byte) error {
	select {
	case <-l.lost:
		return checkpoint.ErrLost
	default:
	}
	resp, err := l.client.Upload(ctx, streaming.NopCloser(strings.NewReader(string(doc))), &blockblob.UploadOptions{
		HTTPHeaders: &azblobblob.HTTPHeaders{BlobContentType: to.Ptr("application/json")},
		AccessConditions: &azblobblob.AccessConditions{
			LeaseAccessConditions:    &azblobblob.LeaseAccessConditions{LeaseID: l.held.LeaseID()},
			ModifiedAccessConditions: &azblobblob.ModifiedAccessConditions{IfMatch: l.etag},
		},
	})
	if bloberror.HasCode(err, bloberror.ConditionNotMet) && l.isOurs(ctx, doc) {
		return nil // written by a try whose answer was lost
	}
	if isLost(err) {
		l.once.Do(func() { close(l.lost) })
		return fmt.Errorf("%w (%s)", checkpoint.ErrLost, code(err))
	}
	if err != nil {
		return explain("write "+l.name, err)
	}
	l.etag = resp.ETag
	return nil
}

// isOurs tells whether the document is doc, under a lease that is still ours,
// and takes its ETag.
func (l *blobLease) isOurs(ctx context.Context, doc []byte) bool {
	if _, err := l.held.RenewLease(ctx, nil); err != nil {
		return false
	}
	before := l.etag
	now, err := l.Load(ctx)
	if err != nil || string(now) != string(doc) {
		l.etag = before
		return false
	}
	return true
}

func (l *blobLease) Lost() <-chan struct{} { return l.lost }

func (l *blobLease) Release(ctx context.Context) error {
	l.stop()
	<-l.stopped
	if _, err := l.held.ReleaseLease(ctx, nil); err != nil && !isLost(err) {
		return explain("release "+l.name, err)
	}
	return nil
}

// isLost tells answers that mean "somebody else", not "try again".
func isLost(err error) bool {
	return bloberror.HasCode(err,
		bloberror.ConditionNotMet, bloberror.LeaseIDMissing, bloberror.LeaseNotPresentWithBlobOperation,
		bloberror.LeaseIDMismatchWithBlobOperation, bloberror.LeaseIDMismatchWithLeaseOperation,
		bloberror.LeaseNotPresentWithLeaseOperation, bloberror.LeaseIsBrokenAndCannotBeRenewed,
		bloberror.LeaseLost, bloberror.BlobNotFound, bloberror.ContainerNotFound)
}

func code(err error) string {
	var r *azcore.ResponseError
	if errors.As(err, &r) {
		return redact.Code(r.ErrorCode)
	}
	return "no code"
}

// explain shortens the SDK's errors, which print the whole exchange, and adds
// what to do about the common ones.
func explain(operation string, err error) error {
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		var none interface {
			error
			NonRetriable()
		}
		if errors.As(err, &none) { // how the SDK marks that there is no token
			line, _, _ := strings.Cut(err.Error(), "\n")
			return fmt.Errorf("state storage: %s: %.200s: it needs an identity: switch on the function app's; on your own machine, sign in with: az login", operation, line)
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which may be signed
		}
		return fmt.Errorf("state storage: %s: %w", operation, err)
	}
	advice := ""
	if r.StatusCode == http.StatusForbidden {
		advice = ": the function app's identity needs the role Storage Blob Data Contributor or Owner on the storage account; a new role takes some minutes"
	}
	return fmt.Errorf("state storage: %s: answered %d %s%s", operation, r.StatusCode, redact.Code(r.ErrorCode), advice)
}
