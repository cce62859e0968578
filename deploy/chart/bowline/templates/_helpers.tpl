{{- define "bowline.labels" -}}
app.kubernetes.io/name: bowline
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "bowline.image" -}}
{{ .Values.images.prefix }}{{ .image }}:{{ .Values.images.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What every pod of the node's own network needs: it runs before pods have one. */}}
{{- define "bowline.hostPod" -}}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- with .Values.images.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "bowline.apiServer" -}}
{{- if .Values.apiServer.host }}
- {name: KUBERNETES_SERVICE_HOST, value: {{ .Values.apiServer.host | quote }}}
- {name: KUBERNETES_SERVICE_PORT, value: {{ .Values.apiServer.port | quote }}}
{{- end }}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- end }}

{{/* Where the kubelet asks a program of the node's own network that listens at this address. */}}
{{- define "bowline.probe" -}}
{{- $host := regexReplaceAll ":[0-9]+$" .address "" | trimAll "[]" -}}
path: {{ .path }}
port: {{ regexFind "[0-9]+$" .address }}
{{- if not (has $host (list "0.0.0.0" "::")) }}
host: {{ $host | quote }}
{{- end }}
{{- end }}

{{/* Made after the definitions that the same release brings, and people's from then on: an upgrade does not touch them. */}}
{{- define "bowline.onceAtInstall" -}}
helm.sh/hook: post-install
helm.sh/hook-delete-policy: hook-failed
{{- end }}

{{/* The hook before an uninstall; the argument orders them. */}}
{{- define "bowline.beforeUninstall" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
