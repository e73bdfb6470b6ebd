// Package kubernetes_test runs what the manifests say: each container's command line with its environment, secrets as files,
// and its probes, on the services of testenv. That the manifests are what the chart renders, and that Kubernetes would take
// them, is tested in deploy/test.
package kubernetes_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/authfence/authfence/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// object is what is read here of a Job, a Deployment or a DaemonSet.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name string `yaml:"name"`
	} `yaml:"metadata"`
	Spec struct {
		Template struct {
			Spec pod `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type pod struct {
	TerminationGracePeriodSeconds int         `yaml:"terminationGracePeriodSeconds"`
	InitContainers                []container `yaml:"initContainers"`
	Containers                    []container `yaml:"containers"`
	Volumes                       []struct {
		Name   string `yaml:"name"`
		Secret struct {
			SecretName string `yaml:"secretName"`
			Items      []struct {
				Key  string `yaml:"key"`
				Path string `yaml:"path"`
			} `yaml:"items"`
		} `yaml:"secret"`
	} `yaml:"volumes"`
}

type container struct {
	Name string   `yaml:"name"`
	Args []string `yaml:"args"`
	Env  []struct {
		Name      string `yaml:"name"`
		Value     string `yaml:"value"`
		ValueFrom struct {
			FieldRef struct {
				FieldPath string `yaml:"fieldPath"`
			} `yaml:"fieldRef"`
		} `yaml:"valueFrom"`
	} `yaml:"env"`
	Ports []struct {
		Name          string `yaml:"name"`
		ContainerPort int    `yaml:"containerPort"`
	} `yaml:"ports"`
	StartupProbe   *probe `yaml:"startupProbe"`
	LivenessProbe  *probe `yaml:"livenessProbe"`
	ReadinessProbe *probe `yaml:"readinessProbe"`
}

type probe struct {
	Exec struct {
		Command []string `yaml:"command"`
	} `yaml:"exec"`
	HTTPGet struct {
		Path string `yaml:"path"`
		Port string `yaml:"port"`
	} `yaml:"httpGet"`
}

func read(t *testing.T, file, kind string) object {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for document := range bytes.SplitSeq(body, []byte("\n---\n")) {
		var o object
		if !bytes.Contains(document, []byte("kind: "+kind+"\n")) {
			continue
		}
		if err := yaml.Unmarshal(document, &o); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		return o
	}
	t.Fatalf("%s holds no %s", file, kind)
	return object{}
}

// Every variable is one that the command knows: another would be ignored without a word.
func TestManifests_SetWhatTheCommandKnows(t *testing.T) {
	s := newSite(t)
	for _, o := range s.pods {
		c := o.ours()
		args := []string{c.Args[0], "--help"}
		if c.Args[0] == "migrate" {
			args = []string{"migrate", "up", "--help"}
		}
		help := s.output(args...)
		known := strings.FieldsFunc(help, func(r rune) bool { return strings.ContainsRune(" \n()$.,", r) })
		for _, e := range c.Env {
			if !slices.Contains(known, e.Name) {
				t.Errorf("%s sets %s, which %q does not know", o.Metadata.Name, e.Name, c.Args)
			}
		}
	}
}

// Kubernetes kills what has not ended by then: 10 s for what is at hand, 2 s for the health server, and a preStop.
func TestManifests_LeaveTimeToDrain(t *testing.T) {
	for _, o := range []object{read(t, "install.yaml", "Deployment"), read(t, "install.yaml", "DaemonSet"), read(t, "service.yaml", "Deployment")} {
		if got := o.Spec.Template.Spec.TerminationGracePeriodSeconds; got < 15 {
			t.Errorf("%s is given %d s", o.Metadata.Name, got)
		}
	}
}

// TestManifests_ServeFromTheirSecrets does what the head of values.yaml says, without containers.
func TestManifests_ServeFromTheirSecrets(t *testing.T) {
	s := newSite(t)
	s.run(s.pods["migrate"])
	token := s.insertKey()
	for _, name := range []string{"sidecar", "daemonset"} {
		p := s.start(s.pods[name])
		// Alive without a listener, and that is all that its probes ask: it stays in its Service as a plain cache.
		p.eventually("its probes pass", func() bool { return p.passes(p.container.StartupProbe) && p.passes(p.container.LivenessProbe) })
		if r := p.container.ReadinessProbe; r != nil && !p.passes(r) {
			t.Errorf("%s: not ready without a listener: its Service would have none left", name)
		}
		if status, source := p.ask(token); status != 200 || source != "primary" {
			t.Errorf("%s without a listener: %d from %q", name, status, source)
		}
	}
	for range 2 {
		p := s.start(s.pods["listener"])
		// The second stands by, and is ready too.
		p.eventually("its probes pass", func() bool {
			return p.passes(p.container.StartupProbe) && p.passes(p.container.LivenessProbe) && p.passes(p.container.ReadinessProbe)
		})
	}
	nodes := s.running[:2]
	for _, p := range nodes {
		p.eventually("answers come from memory under a lease", func() bool { _, source := p.ask(token); return source == "l1" })
	}
	s.execute(`UPDATE api_keys SET revoked_at = now()`)
	for _, p := range nodes {
		p.eventually("the revoked key is refused", func() bool { status, _ := p.ask(token); return status == 401 })
	}
}
