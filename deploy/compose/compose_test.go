// Package compose_test holds docker-compose.yml and the Dockerfile to what they promise. Where no engine is, the same
// commands with the same environment run as processes, on the services of testenv.
package compose_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/authfence/authfence/internal/testenv"
)

const root = "../../"

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

type composeFile struct {
	Services map[string]service `yaml:"services"`
	Volumes  map[string]any     `yaml:"volumes"`
}

type service struct {
	Image       string                `yaml:"image"`
	Build       any                   `yaml:"build"`
	Entrypoint  []string              `yaml:"entrypoint"`
	Command     []string              `yaml:"command"`
	Environment map[string]string     `yaml:"environment"`
	Ports       []string              `yaml:"ports"`
	Volumes     []string              `yaml:"volumes"`
	Restart     string                `yaml:"restart"`
	ReadOnly    bool                  `yaml:"read_only"`
	CapDrop     []string              `yaml:"cap_drop"`
	DependsOn   map[string]dependency `yaml:"depends_on"`
	Healthcheck healthcheck           `yaml:"healthcheck"`
}

type dependency struct {
	Condition string `yaml:"condition"`
}

type healthcheck struct {
	Test []string `yaml:"test"`
}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	text, err := os.ReadFile(root + "docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file composeFile
	// Allowed, because to this parser a key beside a merged one of the same name is a duplicate.
	if err := yaml.UnmarshalWithOptions([]byte(interpolate(string(text))), &file, yaml.AllowDuplicateMapKey()); err != nil {
		t.Fatalf("docker-compose.yml:\n%v", err)
	}
	return file
}

var variable = regexp.MustCompile(`\$\{[A-Z_]+:-([^}]*)\}`)

// interpolate puts in the defaults of ${NAME:-default}.
func interpolate(text string) string { return variable.ReplaceAllString(text, "$1") }

// ours says whether a service runs the image of the Dockerfile.
func (s service) ours() bool { return s.Build != nil }

// argv is what the container runs.
func (s service) argv() []string {
	if len(s.Entrypoint) > 0 {
		return append(slices.Clone(s.Entrypoint), s.Command...)
	}
	return append([]string{"/authfence"}, s.Command...)
}

// named returns the services whose name begins with a prefix, in order.
func (f composeFile) named(prefix string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(f.Services)) {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

func TestCompose_HasTheWholeSystem(t *testing.T) {
	file := readCompose(t)
	for prefix, want := range map[string]int{"postgres": 1, "nats": 1, "redis": 1, "migrate": 1, "listener-": 2, "node-": 3} {
		if got := file.named(prefix); len(got) != want {
			t.Errorf("%d services %s*, want %d", len(got), prefix, want)
		}
	}
	if command := file.Services["nats"].Command; !slices.Contains(command, "--jetstream") || !slices.Contains(command, "--store_dir=/data") {
		t.Errorf("nats has no JetStream with a store on its volume: %q", command)
	}
}

func TestCompose_EveryServiceIsSound(t *testing.T) {
	file := readCompose(t)
	built := dockerfileBinaries(t)
	for name, s := range file.Services {
		if _, tag, ok := strings.Cut(s.Image, ":"); !ok || tag == "" || tag == "latest" {
			t.Errorf("%s: image %q has no fixed tag", name, s.Image)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %s is published beyond loopback", name, port)
			}
		}
		for _, volume := range s.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if _, err := os.Stat(filepath.Join(root, source)); strings.HasPrefix(source, "./") && err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !strings.HasPrefix(source, "./") && !has(file.Volumes, source) {
				t.Errorf("%s: volume %s is not declared", name, source)
			}
		}
		oneShot := name == "migrate" || name == "seed"
		if checked := len(s.Healthcheck.Test) > 1 && s.Healthcheck.Test[0] == "CMD"; checked == oneShot {
			t.Errorf("%s: health check %q; want one in CMD form for what stays up, none for what ends", name, s.Healthcheck.Test)
		}
		if s.ours() {
			if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) {
				t.Errorf("%s: wants neither a writable root nor capabilities", name)
			}
			// The image has no shell, so each program is named by its path.
			programs := []string{s.argv()[0]}
			if !oneShot {
				programs = append(programs, s.Healthcheck.Test[1])
			}
			for _, program := range programs {
				if !slices.Contains(built, program) {
					t.Errorf("%s: runs %s; the image has %q", name, program, built)
				}
			}
		}
		for on, d := range s.DependsOn {
			target, ok := file.Services[on]
			switch {
			case !ok:
				t.Errorf("%s: depends on %s, which there is not", name, on)
			case d.Condition == "service_healthy" && len(target.Healthcheck.Test) == 0,
				d.Condition == "service_completed_successfully" && target.Restart == "unless-stopped",
				d.Condition == "service_started", d.Condition == "":
				t.Errorf("%s: waits for %s to be %q, which says nothing or never comes", name, on, d.Condition)
			}
		}
	}
}

func has[V any](m map[string]V, key string) bool {
	_, ok := m[key]
	return ok
}

var buildCommand = regexp.MustCompile(`(?s)CGO_ENABLED=0 .*?go build (.*?)\n\n`)

// dockerfileBinaries returns the paths of the programs in the image.
func dockerfileBinaries(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(root + "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	match := buildCommand.FindStringSubmatch(string(text))
	if match == nil {
		t.Fatal("the Dockerfile has no static go build")
	}
	var paths []string
	for _, word := range strings.Fields(match[1]) {
		if name, ok := strings.CutPrefix(word, "./"); ok {
			if _, err := os.Stat(root + name); err != nil {
				t.Errorf("the Dockerfile builds %s: %v", word, err)
			}
			paths = append(paths, "/"+name[strings.LastIndexByte(name, '/')+1:])
		}
	}
	return paths
}

func TestDockerfile_RunsAsNobodyOnAnEmptyImage(t *testing.T) {
	text, err := os.ReadFile(root + "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nFROM scratch\n", "\nUSER 65532:65532\n", "-X main.version=$VERSION", `ENTRYPOINT ["/authfence"]`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the Dockerfile lacks %q", strings.TrimSpace(want))
		}
	}
	if got := dockerfileBinaries(t); !slices.Equal(got, []string{"/authfence", "/orders"}) {
		t.Errorf("the image has %q", got)
	}
}
