package deploy_test

import (
	"bytes"
	"os"
	"testing"

	composecli "github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

const root = "../../"

// What the file means and whether it works is tested in deploy/compose; this is whether Docker takes it.
func TestCompose_LoadsAsDockerLoadsIt(t *testing.T) {
	options, err := composecli.NewProjectOptions([]string{root + "docker-compose.yml"}, composecli.WithWorkingDirectory(root))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context()) // with the schema, and what one service says of another
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"listener-1", "listener-2", "node-1", "node-2", "node-3"} {
		s, err := project.GetService(name)
		if err != nil {
			t.Fatal(err)
		}
		// Merged from the anchors at the head of the file.
		if s.Build == nil || s.HealthCheck == nil || !s.ReadOnly || s.Environment["AUTHFENCE_POSTGRES_URL"] == nil || len(s.DependsOn) == 0 {
			t.Errorf("%s is not whole: %+v", name, s)
		}
	}
}

func TestDockerfile_ParsesWithoutAWarning(t *testing.T) {
	body, err := os.ReadFile(root + "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.Parse(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, warning := range file.Warnings {
		t.Errorf("%+v", warning)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, description, _, message string, _ []parser.Range) {
		t.Errorf("%s: %s: %s", rule, message, description)
	}})
	stages, _, err := instructions.Parse(file.AST, lint)
	if err != nil {
		t.Fatal(err)
	}
	last := stages[len(stages)-1]
	var user string
	for _, command := range last.Commands {
		if u, ok := command.(*instructions.UserCommand); ok {
			user = u.User
		}
	}
	if last.BaseName != "scratch" || user != "65532:65532" { // as the chart runs it
		t.Errorf("the last stage is of %s, as user %q", last.BaseName, user)
	}
}
