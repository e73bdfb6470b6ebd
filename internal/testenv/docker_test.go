package testenv

import (
	"strings"
	"testing"
)

func TestContainerArgs(t *testing.T) {
	got := strings.Join(containerArgs("name", "image", 12345, 6379, []string{"--volume", "v:/data"}, []string{"redis-server", "--save", ""}), " ")
	want := "run --rm --name name --publish 127.0.0.1:12345:6379 --volume v:/data image redis-server --save "
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
