// Package deploy_test reads the files of deploy/ as the programs would that they are for: it renders the chart with Helm's own
// engine and holds each object to the types of Kubernetes, and loads docker-compose.yml and the Dockerfile with the parsers of
// Docker.
package deploy_test

import (
	"bytes"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

const (
	ours       = "../helm/authfence"
	example    = "../helm/example"
	kubernetes = "../kubernetes/"
)

var update = flag.Bool("update", false, "write deploy/kubernetes anew")

func load(t *testing.T, path string) *chart.Chart {
	t.Helper()
	c, err := loader.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withDependency is what `helm dependency build` makes of the example.
func withDependency(t *testing.T) *chart.Chart {
	t.Helper()
	c := load(t, example)
	c.AddDependency(load(t, ours))
	return c
}

// values are those of deploy/kubernetes, changed.
func values(t *testing.T, change func(map[string]any)) map[string]any {
	t.Helper()
	v, err := chartutil.ReadValuesFile(kubernetes + "values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(v)
	}
	return v
}

// at is a map within values.
func at(v map[string]any, path ...string) map[string]any {
	for _, name := range path {
		inner, ok := v[name].(map[string]any)
		if !ok {
			inner = make(map[string]any)
			v[name] = inner
		}
		v = inner
	}
	return v
}

func render(c *chart.Chart, release string, v map[string]any) (text string, err error) {
	kube, err := chartutil.ParseKubeVersion("v1.30.0")
	if err != nil {
		return "", err
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = *kube
	if err := chartutil.ProcessDependencies(c, v); err != nil {
		return "", err
	}
	options := chartutil.ReleaseOptions{Name: release, Namespace: "authfence", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, v, options, capabilities)
	if err != nil {
		return "", err
	}
	files, err := engine.Engine{Strict: true}.Render(c, all)
	if err != nil {
		return "", err
	}
	var documents []string
	for name, file := range files {
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		for _, document := range strings.Split(file, "\n---\n") {
			if document = strings.Trim(document, "-\n "); document != "" {
				documents = append(documents, document)
			}
		}
	}
	slices.SortFunc(documents, func(a, b string) int { return strings.Compare(order(a), order(b)) })
	return strings.Join(documents, "\n---\n") + "\n", nil
}

// order is that in which kubectl apply is to meet them: what is needed first, by kind and name.
func order(document string) string {
	kinds := []string{"ConfigMap", "ServiceAccount", "NetworkPolicy", "Service", "Job", "Deployment", "DaemonSet", "PodDisruptionBudget"}
	kind, name := "", ""
	for line := range strings.Lines(document) {
		if after, ok := strings.CutPrefix(line, "kind: "); ok {
			kind = strings.TrimSpace(after)
		}
		if after, ok := strings.CutPrefix(line, "  name: "); ok && name == "" {
			name = strings.TrimSpace(after)
		}
	}
	return string(rune('a'+slices.Index(kinds, kind))) + name
}

// objects are all that was rendered, by the types of Kubernetes: a field that there is not, or twice, is an error.
type objects struct {
	deployments []*appsv1.Deployment
	daemonSets  []*appsv1.DaemonSet
	jobs        []*batchv1.Job
	services    []*corev1.Service
	configMaps  []*corev1.ConfigMap
	accounts    []*corev1.ServiceAccount
	policies    []*networkingv1.NetworkPolicy
	budgets     []*policyv1.PodDisruptionBudget
}

func decode(t *testing.T, text string) objects {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var all objects
	for _, document := range bytes.Split([]byte(text), []byte("\n---\n")) {
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		switch o := object.(type) {
		case *appsv1.Deployment:
			all.deployments = append(all.deployments, o)
		case *appsv1.DaemonSet:
			all.daemonSets = append(all.daemonSets, o)
		case *batchv1.Job:
			all.jobs = append(all.jobs, o)
		case *corev1.Service:
			all.services = append(all.services, o)
		case *corev1.ConfigMap:
			all.configMaps = append(all.configMaps, o)
		case *corev1.ServiceAccount:
			all.accounts = append(all.accounts, o)
		case *networkingv1.NetworkPolicy:
			all.policies = append(all.policies, o)
		case *policyv1.PodDisruptionBudget:
			all.budgets = append(all.budgets, o)
		default:
			t.Fatalf("%T", o)
		}
	}
	return all
}

// workload is a pod that something makes.
type workload struct {
	name     string
	selector *metav1.LabelSelector // nil for a Job
	template corev1.PodTemplateSpec
}

func (o objects) workloads() (all []workload) {
	for _, d := range o.deployments {
		all = append(all, workload{d.Name, d.Spec.Selector, d.Spec.Template})
	}
	for _, d := range o.daemonSets {
		all = append(all, workload{d.Name, d.Spec.Selector, d.Spec.Template})
	}
	for _, j := range o.jobs {
		all = append(all, workload{j.Name, nil, j.Spec.Template})
	}
	return all
}

func (w workload) containers() []corev1.Container {
	return slices.Concat(w.template.Spec.InitContainers, w.template.Spec.Containers)
}

func mustRender(t *testing.T, c *chart.Chart, release string, v map[string]any) objects {
	t.Helper()
	text, err := render(c, release, v)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, text)
}

// TestManifests_AreWhatTheChartRenders: for those without Helm; go test ./... -update writes them.
func TestManifests_AreWhatTheChartRenders(t *testing.T) {
	for file, rendered := range map[string]func() (string, error){
		"install.yaml": func() (string, error) { return render(load(t, ours), "authfence", values(t, nil)) },
		"service.yaml": func() (string, error) { return render(withDependency(t), "orders", map[string]any{}) },
	} {
		want, err := rendered()
		if err != nil {
			t.Fatal(err)
		}
		want = "# Rendered from the charts in deploy/helm by their tests: see docs/deploy.md.\n" + want
		if *update {
			if err := os.WriteFile(kubernetes+file, []byte(want), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(kubernetes + file); err != nil || string(got) != want {
			t.Errorf("%s is not what the chart renders (%v): cd deploy/test && go test ./... -update", file, err)
		}
	}
}
