package kubernetes_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/authfence/authfence/internal/testenv"
)

// patience only ends a hang.
const patience = 60 * time.Second

// site is the cluster that the manifests are for.
type site struct {
	t        *testing.T
	binary   string
	pods     map[string]object
	database string
	nats     *testenv.NATSServer
	redis    *testenv.RedisServer
	secrets  map[string]map[string]string // by name and key
	running  []*process
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, binary: testenv.Program(t, "./cmd/authfence"), database: testenv.Database(t), pods: map[string]object{
		"migrate": read(t, "install.yaml", "Job"), "listener": read(t, "install.yaml", "Deployment"),
		"daemonset": read(t, "install.yaml", "DaemonSet"), "sidecar": read(t, "service.yaml", "Deployment"),
	}}
	listenSeed, listenKey := newKey(t)
	nodeSeed, nodeKey := newKey(t)
	s.nats = testenv.NATS(t, testenv.NATSOptions{Configure: func(o *server.Options) {
		o.Nkeys = []*server.NkeyUser{{Nkey: listenKey}, {Nkey: nodeKey}}
	}})
	const password = "a-password-of-redis"
	s.redis = testenv.OwnRedis(t, testenv.RedisOptions{Args: []string{"--user", "authfence-node", "on", ">" + password, "~*", "&*", "+@all"}})
	s.secrets = map[string]map[string]string{
		"authfence-migrate": {"postgres-url": s.database},
		"authfence-listen":  {"postgres-url": s.database, "nats-nkey": listenSeed},
		"authfence-node": {
			"postgres-url": s.database, "nats-nkey": nodeSeed, "redis-password": password,
			"seal-keys": "k1:" + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef")),
		},
	}
	return s
}

func newKey(t *testing.T) (seed, public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	text, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return string(text), public
}

// ours is the container that runs authfence.
func (o object) ours() container {
	spec := o.Spec.Template.Spec
	for _, c := range append(slices.Clone(spec.InitContainers), spec.Containers...) {
		if len(c.Args) > 0 {
			return c
		}
	}
	return container{}
}

func (s *site) output(args ...string) string {
	s.t.Helper()
	out, err := exec.CommandContext(s.t.Context(), s.binary, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// process is a container of ours, without the container.
type process struct {
	site      *site
	name      string
	container container
	replace   *strings.Replacer // of what is the container's own by what is ours
	child     *testenv.Child
	log       bytes.Buffer // read once the child has ended
	client    *http.Client
	base      string
	dir       string // without an authfence.yaml
}

// prepare makes the files and addresses that the manifest names.
func (s *site) prepare(o object) (*process, *exec.Cmd) {
	t := s.t
	t.Helper()
	p := &process{site: s, name: o.Metadata.Name, container: o.ours()}
	secrets, sockets := t.TempDir(), t.TempDir()
	for _, v := range o.Spec.Template.Spec.Volumes {
		if v.Name != "authfence-secrets" {
			continue
		}
		for _, item := range v.Secret.Items {
			value, ok := s.secrets[v.Secret.SecretName][item.Key]
			if !ok {
				t.Fatalf("%s: no such secret: %s, %s", p.name, v.Secret.SecretName, item.Key)
			}
			if err := os.WriteFile(filepath.Join(secrets, item.Path), []byte(value), 0o400); err != nil {
				t.Fatal(err)
			}
		}
	}
	config := filepath.Join(secrets, "authfence.yaml")
	if err := os.WriteFile(config, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	health, face := freeAddress(t), freeAddress(t)
	p.replace = strings.NewReplacer(
		"/run/secrets/authfence", secrets, "/run/authfence", sockets, "/etc/authfence/authfence.yaml", config,
		"tls://nats.nats.svc:4222", s.nats.URL(), "rediss://authfence-node@redis.redis.svc:6379/0", "redis://authfence-node@"+s.redis.Addr()+"/0",
		"127.0.0.1:7601", health, "127.0.0.1:7602", health, ":7601", health, ":7602", health, ":7600", face,
	)
	var args []string
	transport := &http.Transport{}
	p.base = "http://" + face
	for _, arg := range p.container.Args {
		args = append(args, p.replace.Replace(arg))
		if socket, ok := strings.CutPrefix(arg, "--http=unix:"); ok {
			socket = p.replace.Replace(socket)
			transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			}
		}
	}
	p.client = &http.Client{Transport: transport, Timeout: patience}
	t.Cleanup(transport.CloseIdleConnections)
	cmd := exec.Command(s.binary, args...) // no context: it is to be told to stop
	p.dir = t.TempDir()
	cmd.Dir = p.dir
	for _, e := range p.container.Env {
		value := p.replace.Replace(e.Value)
		switch {
		case e.ValueFrom.FieldRef.FieldPath == "metadata.name":
			value = p.name + "-0123456789-" + strconv.Itoa(10000+len(s.running))
		case strings.HasSuffix(e.Name, "_CA"):
			continue // TLS is tested where it is set up, in deploy/secure
		case e.Name == "AUTHFENCE_STREAM_REPLICAS":
			value = "1" // of one server
		}
		cmd.Env = append(cmd.Env, e.Name+"="+value)
	}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	return p, cmd
}

// run is for what ends by itself.
func (s *site) run(o object) {
	s.t.Helper()
	p, cmd := s.prepare(o)
	// The tables are not there: those of the reference schema stand for yours.
	cmd.Args = append(cmd.Args, "--reference-schema")
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("%s: %v\n%s", p.name, err, p.log.String())
	}
}

func (s *site) start(o object) *process {
	s.t.Helper()
	p, cmd := s.prepare(o)
	var err error
	if p.child, err = testenv.StartChild(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(p.child.Stop(ctx), p.child.Err()); err != nil {
			s.t.Errorf("%s, told to stop: %v\n%s", p.name, err, p.log.String())
		}
	})
	s.running = append(s.running, p)
	return p
}

// passes does what the kubelet does.
func (p *process) passes(probe *probe) bool {
	p.site.t.Helper()
	if command := probe.Exec.Command; len(command) > 0 {
		if command[0] != "/authfence" {
			p.site.t.Fatalf("%s: the image has no %s", p.name, command[0])
		}
		var args []string
		for _, arg := range command[1:] {
			args = append(args, p.replace.Replace(arg))
		}
		cmd := exec.CommandContext(p.site.t.Context(), p.site.binary, args...)
		cmd.Dir = p.dir
		return cmd.Run() == nil
	}
	for _, port := range p.container.Ports {
		if port.Name == probe.HTTPGet.Port {
			status, _ := p.get("http://" + p.replace.Replace(":"+strconv.Itoa(port.ContainerPort)) + probe.HTTPGet.Path)
			return status == http.StatusOK
		}
	}
	p.site.t.Fatalf("%s: no port %q", p.name, probe.HTTPGet.Port)
	return false
}

func (p *process) get(url string) (status int, body string) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	_ = response.Body.Close()
	return response.StatusCode, ""
}

func (p *process) ask(token string) (status int, source string) {
	p.site.t.Helper()
	request, err := http.NewRequestWithContext(p.site.t.Context(), http.MethodGet, p.base+"/v1/authenticate", nil)
	if err != nil {
		p.site.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := p.client.Do(request)
	if err != nil {
		p.site.t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode, response.Header.Get("X-Authfence-Source")
}

func (p *process) eventually(what string, ok func() bool) {
	p.site.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.child.Done():
			p.site.t.Fatalf("%s ended: %v\n%s", p.name, p.child.Err(), p.log.String())
		default:
		}
		if time.Now().After(deadline) {
			_ = p.child.Kill()
			p.site.t.Fatalf("%s: not within %s: %s\n%s", p.name, patience, what, p.log.String())
		}
	}
}

func (s *site) insertKey() (token string) {
	s.t.Helper()
	token = "tok_kubernetes"
	sum := sha256.Sum256([]byte(token))
	s.execute(`WITH o AS (INSERT INTO organizations (name) VALUES ('acme') RETURNING id)
		INSERT INTO api_keys (organization_id, key_hash) SELECT id, $1 FROM o`, sum[:])
	return token
}

func (s *site) execute(statement string, args ...any) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(s.t.Context(), statement, args...); err != nil {
		s.t.Fatal(err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
