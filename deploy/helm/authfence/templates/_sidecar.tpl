{{/*
The node beside your service, in your own chart. Make this chart a dependency of yours, and in your pod's spec write:

      initContainers:
        {{- include "authfence.sidecar" .Subcharts.authfence | nindent 8 }}
      containers:
        - name: yours
          volumeMounts:
            {{- include "authfence.socketMount" . | nindent 12 }}   # /run/authfence/http.sock
      volumes:
        {{- include "authfence.sidecarVolumes" .Subcharts.authfence | nindent 8 }}

deploy/helm/example is such a chart. The socket is there before your containers start, and until the last has ended.
*/}}
{{- define "authfence.sidecar" -}}
- name: authfence
  restartPolicy: Always # a sidecar: starts before the others, ends after them
  image: {{ include "authfence.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  # Whoever mounts the volume may ask, whatever user it runs as.
  args: [invalidate, --http=unix:/run/authfence/http.sock, --http-mode=0666]
  env:
    {{- include "authfence.nodeEnv" . | nindent 4 }}
    - { name: AUTHFENCE_HEALTH, value: "127.0.0.1:7602" } # nothing of ours is open on your pod's address
  # No readiness: without a lease it is a plain cache and not down, and would take your pod out of its Service.
  startupProbe:
    exec: { command: [/authfence, health, "http://127.0.0.1:7602/healthz"] }
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 60
  livenessProbe:
    exec: { command: [/authfence, health, "http://127.0.0.1:7602/healthz"] }
    periodSeconds: 20
    timeoutSeconds: 5
  resources:
    {{- toYaml .Values.node.resources | nindent 4 }}
  securityContext:
    {{- include "authfence.securityContext" . | nindent 4 }}
  volumeMounts:
    {{- include "authfence.volumeMounts" . | nindent 4 }}
    {{- include "authfence.socketMount" . | nindent 4 }}
{{- end }}

{{- define "authfence.socketMount" -}}
- { name: authfence-socket, mountPath: /run/authfence }
{{- end }}

{{- define "authfence.sidecarVolumes" -}}
{{ include "authfence.nodeVolumes" . }}
- name: authfence-socket
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
{{- end }}

{{- define "authfence.nodeEnv" -}}
{{ include "authfence.env" . }}
- { name: AUTHFENCE_L1_BYTES, value: {{ int64 .Values.node.l1Bytes | quote }} }
{{- if .Values.redis.url }}
- { name: AUTHFENCE_REDIS_URL, value: {{ .Values.redis.url | quote }} }
- { name: AUTHFENCE_SEAL_KEYS_FILE, value: /run/secrets/authfence/seal-keys }
{{- if .Values.redis.password }}
- { name: AUTHFENCE_REDIS_PASSWORD_FILE, value: /run/secrets/authfence/redis-password }
{{- end }}
{{- if and .Values.tls.existingSecret (hasPrefix "rediss" .Values.redis.url) }}
- { name: AUTHFENCE_REDIS_CA, value: /etc/authfence/tls/ca.crt }
{{- end }}
{{- end }}
{{- end }}

{{- define "authfence.nodeVolumes" -}}
{{- $secret := required "node.existingSecret is missing: a Secret with postgres-url and nats-nkey" .Values.node.existingSecret }}
{{- $keys := list . (include "authfence.fullname" .) $secret "postgres-url" }}
{{- with include "authfence.natsKey" . }}{{ $keys = append $keys . }}{{ end }}
{{- if .Values.redis.url }}
{{- $keys = append $keys "seal-keys" }}
{{- if .Values.redis.password }}{{ $keys = append $keys "redis-password" }}{{ end }}
{{- end }}
{{- include "authfence.volumes" $keys }}
{{- end }}
