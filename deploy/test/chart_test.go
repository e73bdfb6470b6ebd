package deploy_test

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

func TestChart_LintHasNothingToSay(t *testing.T) {
	kube, err := chartutil.ParseKubeVersion("v1.30.0")
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range lint.AllWithKubeVersion(ours, values(t, nil), "authfence", kube).Messages {
		if message.Severity > support.InfoSev {
			t.Errorf("%v", message)
		}
	}
}

// every rendering that the values allow, but for what differs in a word.
func renderings(t *testing.T) map[string]objects {
	return map[string]objects{
		"everything": mustRender(t, load(t, ours), "authfence", values(t, nil)),
		"loopback": mustRender(t, load(t, ours), "authfence", values(t, func(v map[string]any) {
			at(v, "node", "daemonset")["listen"] = "loopback"
		})),
		"plain": mustRender(t, load(t, ours), "plain", values(t, func(v map[string]any) {
			at(v, "redis")["url"], at(v, "tls")["existingSecret"], at(v, "nats")["credentials"] = "", "", "none"
			at(v, "nats")["url"] = "nats://nats:4222"
		})),
		"own tables, creds": mustRender(t, load(t, ours), "shop", values(t, func(v map[string]any) {
			at(v, "nats")["credentials"], at(v, "nats")["domain"] = "creds", "hub"
			v["imagePullSecrets"] = []any{map[string]any{"name": "registry"}}
			at(v, "networkPolicy")["sidecarPods"] = map[string]any{"authfence": "sidecar"}
			at(v, "networkPolicy", "postgres")["to"] = []any{map[string]any{"ipBlock": map[string]any{"cidr": "10.0.0.0/8"}}}
			at(v, "listener")["nodeSelector"] = map[string]any{"pool": "system"}
			at(v, "config", "watch", "api_key")["table"] = "public.keys"
		})),
		"a service of one's own": mustRender(t, withDependency(t), "orders", map[string]any{}),
	}
}

func TestPods_AreRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name, all := range renderings(t) {
		for _, w := range all.workloads() {
			var refused []string
			for _, result := range evaluator.EvaluatePod(restricted, &w.template.ObjectMeta, &w.template.Spec) {
				if !result.Allowed {
					refused = append(refused, result.ForbiddenReason)
				}
			}
			// The machine's own network is what one asks for with loopback.
			if hostNetwork := w.template.Spec.HostNetwork; hostNetwork != slices.Contains(refused, "host namespaces") ||
				!hostNetwork && len(refused) > 0 {
				t.Errorf("%s: %s: Pod Security refuses it: %q", name, w.name, refused)
			}
			if mount := w.template.Spec.AutomountServiceAccountToken; mount == nil || *mount {
				t.Errorf("%s: %s gets a token of Kubernetes", name, w.name)
			}
			for _, c := range w.containers() {
				if c.Name != "orders" && !*c.SecurityContext.ReadOnlyRootFilesystem {
					t.Errorf("%s: %s: the root can be written to", name, c.Name)
				}
			}
		}
	}
}

func TestListeners_OneStaysAndTheyFindEachOther(t *testing.T) {
	all := mustRender(t, load(t, ours), "authfence", values(t, nil))
	d, budget := all.deployments[0], all.budgets[0]
	if *d.Spec.Replicas != 2 || budget.Spec.MinAvailable.IntValue() != 1 || d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 1 {
		t.Errorf("%d replicas, %s stay", *d.Spec.Replicas, budget.Spec.MinAvailable)
	}
	for _, spread := range d.Spec.Template.Spec.TopologySpreadConstraints {
		wantMatch(t, "spread over "+spread.TopologyKey, spread.LabelSelector, d.Spec.Template.Labels)
	}
	wantMatch(t, "the budget", budget.Spec.Selector, d.Spec.Template.Labels)
	// With one, a budget of one would hold up the draining of its machine.
	alone := mustRender(t, load(t, ours), "authfence", values(t, func(v map[string]any) { at(v, "listener")["replicas"] = int64(1) }))
	if len(alone.budgets) != 0 {
		t.Errorf("a budget for one listener: %v", alone.budgets)
	}
	// Its name is its pod's, and may have 48 characters.
	long := mustRender(t, load(t, ours), strings.Repeat("long-", 10), values(t, nil))
	if pod := long.deployments[0].Name + "-0123456789-01234"; len(pod) > 48 {
		t.Errorf("a listener's pod may be named %s: %d characters", pod, len(pod))
	}
}

func wantMatch(t *testing.T, what string, selector *metav1.LabelSelector, of map[string]string) {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil || s.Empty() || !s.Matches(labels.Set(of)) {
		t.Errorf("%s does not select its pods: %v, %v", what, s, err)
	}
}

// Everything that is named is there: labels, ports, volumes, accounts, configuration.
func TestObjects_FitTogether(t *testing.T) {
	for name, all := range renderings(t) {
		for _, w := range all.workloads() {
			what := name + ": " + w.name
			if w.selector != nil {
				wantMatch(t, what, w.selector, w.template.Labels)
			}
			if account := w.template.Spec.ServiceAccountName; account != "" && account != all.accounts[0].Name {
				t.Errorf("%s: no such account: %s", what, account)
			}
			volumes := make(map[string]bool)
			for _, v := range w.template.Spec.Volumes {
				volumes[v.Name] = false
				if v.ConfigMap != nil && !slices.ContainsFunc(all.configMaps, func(c *corev1.ConfigMap) bool { return c.Name == v.ConfigMap.Name }) {
					t.Errorf("%s: no such ConfigMap: %s", what, v.ConfigMap.Name)
				}
			}
			for _, c := range w.containers() {
				for _, mount := range c.VolumeMounts {
					if _, ok := volumes[mount.Name]; !ok {
						t.Errorf("%s: %s mounts %s, which there is not", what, c.Name, mount.Name)
					}
					volumes[mount.Name] = true
				}
				for probe, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
					if p == nil || p.HTTPGet == nil || c.Name == "orders" {
						continue
					}
					health := environment(c)["AUTHFENCE_HEALTH"]
					if port := portOf(c, p.HTTPGet.Port); !strings.HasSuffix(health, ":"+strconv.Itoa(int(port))) {
						t.Errorf("%s: %s probe asks port %d, and health is on %q", what, probe, port, health)
					}
					if loopback := strings.HasPrefix(health, "127.0.0.1:"); loopback != (p.HTTPGet.Host == "127.0.0.1") {
						t.Errorf("%s: %s probe asks host %q, and health is on %q", what, probe, p.HTTPGet.Host, health)
					}
				}
			}
			for volume, mounted := range volumes {
				if !mounted {
					t.Errorf("%s: nobody mounts %s", what, volume)
				}
			}
			wantPolicy(t, what, all.policies, w)
		}
		for _, s := range all.services {
			w := all.workloads()[slices.IndexFunc(all.workloads(), func(w workload) bool { return w.name == s.Name })]
			wantMatch(t, s.Name, &metav1.LabelSelector{MatchLabels: s.Spec.Selector}, w.template.Labels)
			if port := portOf(w.template.Spec.Containers[0], s.Spec.Ports[0].TargetPort); !slices.ContainsFunc(w.template.Spec.Containers[0].Args, func(arg string) bool {
				return strings.HasPrefix(arg, "--http=") && strings.HasSuffix(arg, ":"+strconv.Itoa(int(port)))
			}) {
				t.Errorf("the Service leads to port %d of %q", port, w.template.Spec.Containers[0].Args)
			}
		}
	}
}

// Who scrapes is let in to the port of /metrics, and nobody else is, unless it is said who.
func TestPolicies_LetScrapersInAndNobodyElse(t *testing.T) {
	monitoring := map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": "monitoring"}}}
	for _, scraped := range []bool{false, true} {
		all := mustRender(t, load(t, ours), "authfence", values(t, func(v map[string]any) {
			if scraped {
				at(v, "networkPolicy")["scrapers"] = []any{monitoring}
			}
		}))
		for _, name := range []string{"authfence-listen", "authfence-node"} {
			i := slices.IndexFunc(all.policies, func(p *networkingv1.NetworkPolicy) bool { return p.Name == name })
			if i < 0 {
				t.Fatalf("no policy %s", name)
			}
			open := slices.ContainsFunc(all.policies[i].Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
				return len(r.Ports) == 1 && r.Ports[0].Port.StrVal == "health" && len(r.From) == 1 && r.From[0].NamespaceSelector != nil &&
					r.From[0].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] == "monitoring"
			})
			if open != scraped {
				t.Errorf("%s with scrapers %v: %+v", name, scraped, all.policies[i].Spec.Ingress)
			}
			if name == "authfence-listen" && !scraped && len(all.policies[i].Spec.Ingress) != 0 {
				t.Errorf("%s lets in %+v", name, all.policies[i].Spec.Ingress)
			}
		}
	}
}

// wantPolicy: one policy holds each pod of the chart, and it lets it reach what its environment names.
func wantPolicy(t *testing.T, what string, policies []*networkingv1.NetworkPolicy, w workload) {
	t.Helper()
	if len(policies) == 0 { // a service of one's own
		return
	}
	i := slices.IndexFunc(policies, func(p *networkingv1.NetworkPolicy) bool {
		s, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		return err == nil && s.Matches(labels.Set(w.template.Labels))
	})
	if i < 0 {
		t.Errorf("%s: no policy", what)
		return
	}
	p := policies[i]
	if len(p.Spec.PolicyTypes) != 2 {
		t.Errorf("%s: its policy is for %v", what, p.Spec.PolicyTypes)
	}
	open := make(map[string]bool)
	for _, rule := range p.Spec.Egress {
		for _, port := range rule.Ports {
			open[port.Port.String()] = true
		}
	}
	want := map[string]bool{"53": true, "5432": true}
	for _, name := range []string{"AUTHFENCE_NATS_URL", "AUTHFENCE_REDIS_URL"} {
		if value, ok := environment(w.template.Spec.Containers[0])[name]; ok {
			u, err := url.Parse(value)
			if err != nil {
				t.Fatal(err)
			}
			want[u.Port()] = true
		}
	}
	if len(open) != len(want) {
		t.Errorf("%s: its policy opens %v, and it needs %v", what, open, want)
	}
	for port := range want {
		if !open[port] {
			t.Errorf("%s: its policy opens %v, and it needs %v", what, open, want)
		}
	}
	for _, rule := range p.Spec.Ingress {
		if len(rule.From) == 0 || rule.Ports[0].Port.StrVal != "http" {
			t.Errorf("%s: its policy lets anybody in: %v", what, rule)
		}
	}
}

func environment(c corev1.Container) map[string]string {
	all := make(map[string]string)
	for _, e := range c.Env {
		all[e.Name] = e.Value
	}
	return all
}

func portOf(c corev1.Container, port intstr.IntOrString) int32 {
	for _, p := range c.Ports {
		if p.Name == port.StrVal && port.Type == intstr.String || p.ContainerPort == port.IntVal && port.Type == intstr.Int {
			return p.ContainerPort
		}
	}
	return 0
}

// A hook runs before the objects of the release are there.
func TestMigrate_NeedsNothingOfTheRelease(t *testing.T) {
	all := mustRender(t, load(t, ours), "authfence", values(t, nil))
	job := all.jobs[0]
	if account := job.Spec.Template.Spec.ServiceAccountName; account != "" {
		t.Errorf("it waits for the account %s", account)
	}
	for _, v := range job.Spec.Template.Spec.Volumes {
		for _, c := range all.configMaps {
			if v.ConfigMap != nil && v.ConfigMap.Name == c.Name && c.Annotations["helm.sh/hook"] != job.Annotations["helm.sh/hook"] {
				t.Errorf("it waits for the ConfigMap %s", c.Name)
			}
		}
	}
}

func TestValues_AreRefusedByName(t *testing.T) {
	for name, c := range map[string]struct {
		change func(map[string]any)
		want   string
	}{
		"no image":            {func(v map[string]any) { delete(v, "image") }, "image"},
		"no NATS":             {func(v map[string]any) { delete(v, "nats") }, "nats"},
		"a host for a URL":    {func(v map[string]any) { at(v, "nats")["url"] = "nats:4222" }, "nats"},
		"no Secret":           {func(v map[string]any) { at(v, "listener")["existingSecret"] = "" }, "listener.existingSecret"},
		"no Secret of nodes":  {func(v map[string]any) { at(v, "node")["existingSecret"] = "" }, "node.existingSecret"},
		"no owner":            {func(v map[string]any) { at(v, "migrate")["existingSecret"] = "" }, "migrate.existingSecret"},
		"a typing error":      {func(v map[string]any) { at(v, "listener")["replica"] = int64(2) }, "replica"},
		"a bound of no unit":  {func(v map[string]any) { v["maxStaleness"] = "2" }, "maxStaleness"},
		"a secret in the map": {func(v map[string]any) { at(v, "config")["postgres_url"] = "postgres://u:p@h/d" }, "postgres_url"},
		"another face":        {func(v map[string]any) { at(v, "node", "daemonset")["listen"] = "everywhere" }, "listen"},
	} {
		if _, err := render(load(t, ours), "authfence", values(t, c.change)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
