package settings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"qualys-sentinel/handler/internal/redact"
)

// A Vault reads secrets.
type Vault interface {
	// Secret returns a secret's value; the newest where version is empty.
	Secret(ctx context.Context, r Reference) (string, error)
}

// A Reference names a secret.
type Reference struct {
	Vault   string // address of the vault
	Name    string
	Version string // empty: the newest
}

const prefix = "@microsoft.keyvault("

// IsReference tells whether a value is a Key Vault reference that the platform
// has left as it is, which it does when it cannot resolve it.
func IsReference(value string) bool {
	return len(value) >= len(prefix) && strings.EqualFold(value[:len(prefix)], prefix)
}

const acceptedReference = "Accepted: @Microsoft.KeyVault(SecretUri=https://<vault>.vault.azure.net/secrets/<name>) or @Microsoft.KeyVault(VaultName=<vault>;SecretName=<name>), both with or without a version"

var (
	vaultSuffixes = []string{".vault.azure.net", ".vault.usgovcloudapi.net", ".vault.azure.cn"}
	vaultName     = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]$`)
	secretName    = regexp.MustCompile(`^[0-9a-zA-Z-]{1,127}$`)
	versionName   = regexp.MustCompile(`^[0-9a-fA-F]{32}$`)
)

// ParseReference reads both forms of a reference (Microsoft, "Use Key Vault
// references"). suffix is that of the vaults of the app's cloud.
func ParseReference(value, suffix string) (Reference, error) {
	inner, ok := strings.CutSuffix(strings.TrimSpace(value)[len(prefix):], ")")
	if !ok {
		return Reference{}, errors.New("the Key Vault reference has no closing bracket. " + acceptedReference)
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(inner, ";") {
		name, v, _ := strings.Cut(part, "=")
		fields[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(v)
	}
	r := Reference{Name: fields["secretname"], Version: fields["secretversion"]}
	if uri := fields["secreturi"]; uri != "" {
		u, err := url.Parse(uri)
		if err != nil || !validHost(u) || u.Scheme != "https" || u.User != nil {
			return Reference{}, errors.New("the Key Vault reference's SecretUri is no https address. " + acceptedReference)
		}
		if !hasSuffix(u.Hostname(), vaultSuffixes) && !loopback(u.Hostname()) {
			return Reference{}, fmt.Errorf("%q is no Key Vault. %s", u.Host, acceptedReference)
		}
		parts := strings.Split(strings.Trim(u.Path, "/"), "/")
		if len(parts) < 2 || len(parts) > 3 || parts[0] != "secrets" {
			return Reference{}, errors.New("the Key Vault reference's SecretUri names no secret. " + acceptedReference)
		}
		r = Reference{Vault: "https://" + u.Host, Name: parts[1]}
		if len(parts) == 3 {
			r.Version = parts[2]
		}
	} else if name := fields["vaultname"]; vaultName.MatchString(name) {
		r.Vault = "https://" + name + suffix
	} else {
		return Reference{}, errors.New("the Key Vault reference names no vault. " + acceptedReference)
	}
	if !secretName.MatchString(r.Name) || r.Version != "" && !versionName.MatchString(r.Version) {
		return Reference{}, errors.New("the Key Vault reference's secret name or version is malformed. " + acceptedReference)
	}
	return r, nil
}

// vaultSuffix is that of the cloud the app runs in.
func vaultSuffix(raw map[string]string) string {
	for _, name := range []string{"website_hostname", "loganalyticsuri", "azurewebjobsstorage__blobserviceuri"} {
		u := strings.ToLower(raw[name])
		switch {
		case strings.HasSuffix(u, ".us"), strings.HasSuffix(u, ".usgovcloudapi.net"):
			return ".vault.usgovcloudapi.net"
		case strings.HasSuffix(u, ".cn"):
			return ".vault.azure.cn"
		}
	}
	return ".vault.azure.net"
}

// DefaultVaultTime is how long a secret may take. The SDK's own tries are within
// it, and a few secrets are within the time of an HTTP call.
const DefaultVaultTime = 20 * time.Second

// vaultTry ends one of these tries that hangs; a secret takes less than a second.
const vaultTry = 8 * time.Second

func read(ctx context.Context, v Vault, most time.Duration, r Reference) (string, error) {
	if v == nil {
		return "", errors.New("it is a Key Vault reference, and none can be read here")
	}
	limited, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	value, err := v.Secret(limited, r)
	if err = inTime(ctx, limited, most, err); err != nil {
		return "", fmt.Errorf("secret %s of %s: %w", r.Name, r.Vault, err)
	}
	return value, nil
}

// inTime is err, or that the time of a call was up.
func inTime(ctx, limited context.Context, most time.Duration, err error) error {
	if limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("no answer within %s: let the app out to the vault: virtual network, private endpoint, the vault's firewall", most)
	}
	return err
}

// KeyVault reads secrets with the app's identity.
type KeyVault struct {
	// Credential of the app's identity; called when the first secret is read.
	Credential func() (azcore.TokenCredential, error)
	// Options for the client; nil for the defaults.
	Options *azsecrets.ClientOptions
}

var _ Vault = (*KeyVault)(nil)

// client of a vault.
func (k *KeyVault) client(vault string) (*azsecrets.Client, error) {
	credential, err := k.Credential()
	if err != nil {
		return nil, err
	}
	options := azsecrets.ClientOptions{}
	if k.Options != nil {
		options = *k.Options
	}
	options.Retry.TryTimeout = cmp.Or(options.Retry.TryTimeout, vaultTry)
	if u, err := url.Parse(vault); err == nil && loopback(u.Hostname()) {
		// A vault of the simulator has no name for the challenge to match.
		options.DisableChallengeResourceVerification = true
	}
	client, err := azsecrets.NewClient(vault, credential, &options)
	if err != nil {
		return nil, fmt.Errorf("key vault client: %w", err)
	}
	return client, nil
}

// Secret implements Vault.
func (k *KeyVault) Secret(ctx context.Context, r Reference) (string, error) {
	client, err := k.client(r.Vault)
	if err != nil {
		return "", err
	}
	resp, err := client.GetSecret(ctx, r.Name, r.Version, nil)
	if err != nil {
		return "", explainVault(err, "Key Vault Secrets User")
	}
	if resp.Value == nil || *resp.Value == "" {
		return "", errors.New("the secret is empty")
	}
	return *resp.Value, nil
}

// KeyFile keeps the keys of workspaces in a vault that is there for nothing else,
// each as a secret of its own.
type KeyFile struct {
	KeyVault
	// Vault is its address.
	Vault string
	// NewID makes the end of a secret's name, so that it is never that of another.
	NewID func() string
	// Time is how long a call may take; DefaultVaultTime if zero.
	Time time.Duration

	mu    sync.Mutex
	known map[string]string // keys by address, which never change
}

// writerRole is what writing and deleting secrets needs.
const writerRole = "Key Vault Secrets Officer"

// most is how long a call may take.
func (k *KeyFile) most() time.Duration { return cmp.Or(k.Time, DefaultVaultTime) }

// Put keeps a key and returns the address of its secret.
func (k *KeyFile) Put(ctx context.Context, id int64, key string) (string, error) {
	limited, cancel := context.WithTimeout(ctx, k.most())
	defer cancel()
	client, err := k.client(k.Vault)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("qualys-integration-%d-%s", id, k.NewID())
	kind := "key of a Log Analytics workspace"
	resp, err := client.SetSecret(limited, name, azsecrets.SetSecretParameters{Value: &key, ContentType: &kind}, nil)
	if err != nil {
		var answer *azcore.ResponseError
		if !errors.As(err, &answer) || answer.StatusCode >= http.StatusInternalServerError {
			// It may be there all the same, and nobody would know of it.
			tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.most())
			defer cancel()
			_, _ = client.DeleteSecret(tidy, name, nil) // the error below names what may be left
		}
		return "", fmt.Errorf("secret %s of %s: %w", name, k.Vault, inTime(ctx, limited, k.most(), explainVault(err, writerRole)))
	}
	address := k.Vault + "/secrets/" + name
	if resp.ID != nil && resp.ID.Version() != "" {
		address += "/" + resp.ID.Version()
	}
	k.remember(address, key)
	return address, nil
}

func (k *KeyFile) remember(address, key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known == nil {
		k.known = map[string]string{}
	}
	k.known[address] = key
}

// Get returns a key, from memory where it has been read before.
func (k *KeyFile) Get(ctx context.Context, address string) (string, error) {
	k.mu.Lock()
	key, ok := k.known[address]
	k.mu.Unlock()
	if ok {
		return key, nil
	}
	r, err := k.reference(address)
	if err != nil {
		return "", err
	}
	if key, err = read(ctx, &k.KeyVault, k.most(), r); err != nil {
		return "", err
	}
	k.remember(address, key)
	return key, nil
}

// reference of a secret's address. Nothing is asked of another vault: the address is
// in a document that people may write.
func (k *KeyFile) reference(address string) (Reference, error) {
	r, err := ParseReference(prefix+"SecretUri="+address+")", "")
	if err == nil && r.Vault != k.Vault {
		err = fmt.Errorf("its key is in %s, and integrationVault is %s: set it back, or set the key again", r.Vault, k.Vault)
	}
	return r, err
}

// Remove deletes the secret. One that is not there is no error.
func (k *KeyFile) Remove(ctx context.Context, address string) error {
	k.mu.Lock()
	delete(k.known, address)
	k.mu.Unlock()
	r, err := k.reference(address)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, k.most())
	defer cancel()
	client, err := k.client(r.Vault)
	if err != nil {
		return err
	}
	_, err = client.DeleteSecret(limited, r.Name, nil)
	var answer *azcore.ResponseError
	if err == nil || errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return nil
	}
	return fmt.Errorf("secret %s of %s: %w", r.Name, r.Vault, inTime(ctx, limited, k.most(), explainVault(err, writerRole)))
}

// explainVault shortens the SDK's errors, which print the whole exchange.
func explainVault(err error, role string) error {
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		line, _, _ := strings.Cut(err.Error(), "\n")
		return errors.New(line)
	}
	switch r.StatusCode {
	case http.StatusForbidden:
		return errors.New("the vault refuses access: give the function app's identity the role " + role + ", and let the vault's firewall pass it")
	case http.StatusNotFound:
		return errors.New("there is no such secret or version")
	case http.StatusUnauthorized:
		return errors.New("the vault refuses the identity's token: it belongs to another tenant")
	}
	return fmt.Errorf("the vault answered %d %s", r.StatusCode, redact.Code(r.ErrorCode))
}

// Credentials are the Qualys account's. They can be read anew where they are
// Key Vault references that this program resolved itself; what the platform
// resolved changes with a restart of the app, which the platform does.
type Credentials struct {
	vault     Vault
	vaultTime time.Duration
	refs      map[string]Reference

	mu       sync.Mutex
	user     string
	password string
}

// Login returns the current user and password.
func (c *Credentials) Login() (user, password string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.user, c.password
}

// Reload reads the references anew, and reports whether anything changed.
func (c *Credentials) Reload(ctx context.Context) (bool, error) {
	user, password := c.Login()
	newUser, newPassword := user, password
	for name, value := range map[string]*string{"apiUsername": &newUser, "apiPassword": &newPassword} {
		ref, ok := c.refs[name]
		if !ok {
			continue
		}
		v, err := read(ctx, c.vault, c.vaultTime, ref)
		if err != nil {
			return false, fmt.Errorf("setting %s: %w", name, err)
		}
		err = exact(v)
		if err == nil && name == "apiUsername" {
			err = checkUser(v)
		}
		if err != nil {
			return false, fmt.Errorf("setting %s: %w", name, err)
		}
		*value = v
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.user, c.password = newUser, newPassword
	return newUser != user || newPassword != password, nil
}
