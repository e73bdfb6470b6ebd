package watch_test

import (
	"testing"

	"github.com/authfence/authfence/watch"
)

// What parses is quoted so that it parses as the same name, whatever stands in it.
func FuzzParseName(f *testing.F) {
	for _, name := range []string{"api_keys", "public.api_keys", `"My Schema"."a""b"`, `"a.b"`, `x.y.z`, `"`, "Ünïcode"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, text string) {
		name, err := watch.ParseName(text)
		if err != nil {
			return
		}
		again, err := watch.ParseName(name.SQL())
		if err != nil || again != name {
			t.Errorf("%q is %+v, quoted %s, which is %+v, %v", text, name, name.SQL(), again, err)
		}
	})
}
