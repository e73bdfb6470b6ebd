package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// diskFaults fill disks.
func diskFaults() []Fault {
	return []Fault{{Kind: "disk of a nats-server full", Needs: mountable, Run: diskFull}}
}

// disk is a small one for JetStream: a tmpfs over its directory.
const diskSize = "16m"

var mounts = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "chaos-mount-*")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.Remove(dir)
	if err := mountDisk(dir); err != nil {
		return err
	}
	return unmountDisk(dir)
})

// mountable says whether this machine lets us have a disk to fill.
func mountable(*World) error { return mounts() }

func mountDisk(dir string) error {
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+diskSize, "chaos", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount a small tmpfs (as root, with the right to mount): %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func unmountDisk(dir string) error {
	if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("unmount: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// diskFull gives a nats-server a small and empty disk, fills it under its hands,
// and in the end gives the old one back, on which what happened meanwhile is
// missing.
func diskFull(ctx context.Context, w *World, random *rand.Rand) (err error) {
	n := pick(random, w.NATS)
	release, err := w.Claim(ctx, n.name, "postgres")
	if err != nil {
		return err
	}
	defer release()
	whole := context.WithoutCancel(ctx)
	if err := n.Kill(); err != nil {
		return err
	}
	if err := os.MkdirAll(n.StoreDir(), 0o700); err != nil {
		return errors.Join(fmt.Errorf("make the store's directory: %w", err), n.Start(whole))
	}
	if err := mountDisk(n.StoreDir()); err != nil {
		return errors.Join(err, n.Start(whole))
	}
	// Without this the server would reckon with the disk's size, and refuse the
	// stream instead of running into the end of the disk.
	n.ExtraJetStream = "max_file_store: 8GB"
	defer func() {
		n.ExtraJetStream = ""
		err = errors.Join(err, n.Kill(), unmountDisk(n.StoreDir()), n.Start(whole))
	}()
	if err := n.Start(ctx); err != nil {
		return err
	}
	err = Eventually(ctx, time.Minute, "the new disk holds messages of the stream", func(ctx context.Context) bool {
		_ = w.Restore(ctx, random.IntN(w.Keys())) // the next try may do better
		blocks, err := streamBlocks(n)
		return err == nil && len(blocks) > 0
	})
	if err != nil {
		return err
	}
	before := len(n.Log())
	if err := fillDisk(n.StoreDir()); err != nil {
		return err
	}
	noticed := func() bool { return strings.Contains(n.Log()[before:], "no space left on device") }
	err = Eventually(ctx, time.Minute, n.name+" runs into the end of its disk", func(ctx context.Context) bool {
		_ = w.Restore(ctx, random.IntN(w.Keys()))
		return noticed()
	})
	w.Options.Logf("  disk of %s full", n.name)
	pause(ctx, between(random, time.Second, 3*time.Second))
	return err
}

// fillDisk writes until nothing more goes.
func fillDisk(dir string) error {
	file, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		return fmt.Errorf("fill the disk: %w", err)
	}
	defer file.Close()
	for _, size := range []int{1 << 20, 4 << 10, 1} {
		for chunk := make([]byte, size); err == nil; {
			_, err = file.Write(chunk)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("fill the disk: %w", err)
		}
		err = nil
	}
	return nil
}
