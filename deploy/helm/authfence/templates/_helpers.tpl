{{/* A listener's name has 48 characters at most, and is that of its pod: 24, -listen, and what a Deployment adds. */}}
{{- define "authfence.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 24 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 24 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Called with (list . "component"). */}}
{{- define "authfence.selector" -}}
{{- $root := first . -}}
app.kubernetes.io/name: authfence
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "authfence.labels" -}}
{{- $root := first . -}}
{{ include "authfence.selector" . }}
app.kubernetes.io/version: {{ $root.Values.image.tag | default $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "authfence.image" -}}
{{ required "image.repository is missing: where you push what the Dockerfile builds" .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* As strict as the Pod Security Standard "restricted", and with a root that cannot be written to. */}}
{{- define "authfence.securityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Secrets are files, so that they are in no environment. Called with (list . configMap secret keys…). */}}
{{- define "authfence.volumes" -}}
{{- $root := first . -}}
- name: authfence-config
  configMap: { name: {{ index . 1 }} }
- name: authfence-secrets
  secret:
    secretName: {{ index . 2 }}
    defaultMode: 0444
    items:
{{- range slice . 3 }}
      - { key: {{ . }}, path: {{ . }} }
{{- end }}
{{- with $root.Values.tls.existingSecret }}
- name: authfence-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0444
    items: [{ key: ca.crt, path: ca.crt }]
{{- end }}
{{- end }}

{{- define "authfence.volumeMounts" -}}
- { name: authfence-config, mountPath: /etc/authfence/authfence.yaml, subPath: authfence.yaml, readOnly: true }
- { name: authfence-secrets, mountPath: /run/secrets/authfence, readOnly: true }
{{- if .Values.tls.existingSecret }}
- { name: authfence-tls, mountPath: /etc/authfence/tls, readOnly: true }
{{- end }}
{{- end }}

{{- define "authfence.postgresEnv" -}}
- { name: AUTHFENCE_CONFIG, value: /etc/authfence/authfence.yaml }
- { name: AUTHFENCE_POSTGRES_URL_FILE, value: /run/secrets/authfence/postgres-url }
- { name: AUTHFENCE_LOG_FORMAT, value: json }
{{- end }}

{{- define "authfence.env" -}}
{{ include "authfence.postgresEnv" . }}
- name: AUTHFENCE_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- { name: AUTHFENCE_MAX_STALENESS, value: {{ .Values.maxStaleness | quote }} }
- { name: AUTHFENCE_NATS_URL, value: {{ required "nats.url is missing: nats://host:4222, or tls:// and further ones after commas" .Values.nats.url | quote }} }
{{- with .Values.nats.domain }}
- { name: AUTHFENCE_NATS_DOMAIN, value: {{ . | quote }} }
{{- end }}
{{- if ne .Values.nats.credentials "none" }}
- { name: AUTHFENCE_NATS_{{ upper .Values.nats.credentials }}, value: /run/secrets/authfence/nats-{{ .Values.nats.credentials }} }
{{- end }}
{{- if .Values.tls.existingSecret }}
- { name: AUTHFENCE_NATS_CA, value: /etc/authfence/tls/ca.crt }
{{- end }}
{{- end }}

{{- define "authfence.natsKey" -}}
{{- if ne .Values.nats.credentials "none" }}nats-{{ .Values.nats.credentials }}{{ end }}
{{- end }}
