{{/* What values.schema.json cannot say in a sentence, or not at all: values that go together. */}}
{{- define "bowline.validate" }}
{{- $huge := .Values.dataplane.hugepages }}
{{- if and $huge.kind (not $huge.amount) }}
{{- fail (printf "dataplane.hugepages.kind is %s and dataplane.hugepages.amount is empty: say how much, like 1Gi" $huge.kind) }}
{{- end }}
{{- if and $huge.amount (not $huge.kind) }}
{{- fail (printf "dataplane.hugepages.amount is %s and dataplane.hugepages.kind is empty: it is hugepages-2Mi or hugepages-1Gi" $huge.amount) }}
{{- end }}
{{- with .Values.images.prefix }}
{{- if not (hasSuffix "/" .) }}{{ fail (printf "images.prefix %q does not end in \"/\": images are <prefix>bowline:<tag> and <prefix>bowline-controller:<tag>" .) }}{{ end }}
{{- end }}
{{- if regexMatch "[/ ]" .Values.apiServer.host }}
{{- fail (printf "apiServer.host %q is not a bare address or name: write 192.0.2.10, and the port as apiServer.port" .Values.apiServer.host) }}
{{- end }}
{{- range $key, $address := dict "agent.metricsAddress" .Values.agent.metricsAddress "dataplane.metricsAddress" .Values.dataplane.metricsAddress }}
{{- if not (regexMatch "^([0-9.]+|\\[[0-9a-fA-F:.]+\\]):[0-9]+$" $address) }}
{{- fail (printf "%s %q is not an address and a port: write it like 0.0.0.0:9410 or [::]:9410" $key $address) }}
{{- end }}
{{- end }}
{{- $net := .Values.defaultNetwork }}
{{- if and $net.create (not $net.ipv4.subnet) (not $net.ipv6.subnet) }}
{{- fail "defaultNetwork.create is true and neither defaultNetwork.ipv4.subnet nor .ipv6.subnet is set: pods would have no addresses" }}
{{- end }}
{{- if and $net.ipv6.subnet (gt (int $net.mtu) 0) (lt (int $net.mtu) 1280) }}
{{- fail (printf "defaultNetwork.mtu %d is too small for defaultNetwork.ipv6: 1280 or more (RFC 8200), or 0" (int $net.mtu)) }}
{{- end }}
{{- end }}
