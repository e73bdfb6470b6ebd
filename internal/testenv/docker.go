package testenv

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// The fallback for machines with a Docker engine and no servers. A container is run in the foreground by a docker
// client that is our child, so everything else is as for a binary: the client hands signals on to the server, and
// a dying parent signals the client.
const containerPassword = "authfence-testenv"

func containerArgs(name, image string, port, inside int, options, command []string) []string {
	args := []string{"run", "--rm", "--name", name,
		"--publish", "127.0.0.1:" + strconv.Itoa(port) + ":" + strconv.Itoa(inside)}
	args = append(args, options...)
	return append(append(args, image), command...)
}

// container is the name of the container, and of the volume that keeps its data over a restart.
func (p *Postgres) container() string { return filepath.Base(p.place.dir) }

func (p *Postgres) killContainer() error {
	return docker("kill", p.container())
}

// removeContainer removes what is left of a container and its volume.
func removeContainer(name string) error {
	return errors.Join(docker("rm", "--force", name), docker("volume", "rm", "--force", name))
}

func docker(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("docker %s: %w: %s", args[0], err, out)
	}
	return nil
}
