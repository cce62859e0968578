{{/* IPv4 addresses as numbers and back. */}}
{{- define "bowline.number" -}}
{{- $n := 0 }}{{- range splitList "." . }}{{- $n = add (mul $n 256) (atoi .) }}{{- end }}{{- $n -}}
{{- end }}
{{- define "bowline.address" -}}
{{- $n := int64 . -}}
{{- printf "%d.%d.%d.%d" (div $n 16777216) (mod (div $n 65536) 256) (mod (div $n 256) 256) (mod $n 256) -}}
{{- end }}

{{/* The range of two numbers, if it holds one. */}}
{{- define "bowline.range" -}}
{{- $low := include "bowline.address" .low }}{{- $high := include "bowline.address" .high }}
{{- if eq $low $high }}{{ toJson (list $low) }}{{ else if lt (int64 .low) (int64 .high) }}{{ toJson (list (printf "%s-%s" $low $high)) }}{{ else }}[]{{ end }}
{{- end }}

{{/* The pool of defaultNetwork.ipv4 as JSON: without a gateway the first address of the subnet, without ips all others. */}}
{{- define "bowline.pool4" -}}
{{- $is4 := "^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\\.|$)){4}$" }}
{{- $parts := splitList "/" .subnet }}
{{- if or (ne (len $parts) 2) (not (regexMatch $is4 (first $parts))) (not (regexMatch "^([1-9]|[12][0-9]|30)$" (last $parts))) }}
{{- fail (printf "defaultNetwork.ipv4.subnet %q is not a prefix of IPv4 for pods: write it like 10.244.0.0/16, at most /30" .subnet) }}
{{- end }}
{{- $size := 1 }}{{- range until (int (sub 32 (atoi (last $parts)))) }}{{- $size = mul $size 2 }}{{- end }}
{{- $low := include "bowline.number" (first $parts) | int64 }}
{{- $start := sub $low (mod $low $size) }}
{{- if ne $low $start }}
{{- fail (printf "defaultNetwork.ipv4.subnet %q has bits behind its prefix: write %s/%s" .subnet (include "bowline.address" $start) (last $parts)) }}
{{- end }}
{{- $end := sub (add $start $size) 1 }}
{{- $gateway := .gateway | default (include "bowline.address" (add $start 1)) }}
{{- range $what, $list := dict "gateway" (list $gateway) "ips" .ips }}
{{- range $text := $list }}
{{- range $one := splitList "-" $text }}
{{- if not (regexMatch $is4 $one) }}
{{- fail (printf "defaultNetwork.ipv4.%s %q is not an address of IPv4 (ips: or a range of two, 10.244.0.2-10.244.0.99)" $what $text) }}
{{- end }}
{{- $n := include "bowline.number" $one | int64 }}
{{- if or (le $n $start) (ge $n $end) }}
{{- fail (printf "defaultNetwork.ipv4.%s %q is outside of defaultNetwork.ipv4.subnet %s, or its first or last address" $what $text $.subnet) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $own := include "bowline.number" $gateway | int64 }}
{{- $ips := .ips | default (concat
  (include "bowline.range" (dict "low" (add $start 1) "high" (sub $own 1)) | fromJsonArray)
  (include "bowline.range" (dict "low" (add $own 1) "high" (sub $end 1)) | fromJsonArray)) }}
{{- toJson (dict "subnet" .subnet "gateway" $gateway "ips" $ips) }}
{{- end }}

{{/* The same of defaultNetwork.ipv6: the first 65,535 addresses after the gateway, where the prefix ends in "::". */}}
{{- define "bowline.pool6" -}}
{{- $prefix := regexFind "^[0-9a-fA-F:]*::/([1-9][0-9]?|10[0-9]|11[0-2])$" .subnet }}
{{- if not (regexMatch "^[0-9a-fA-F]*:[0-9a-fA-F:]*/([1-9]|[1-9][0-9]|1[01][0-9]|12[0-6])$" .subnet) }}
{{- fail (printf "defaultNetwork.ipv6.subnet %q is not a prefix of IPv6 for pods: write it like fd00:244::/64" .subnet) }}
{{- end }}
{{- if and (not $prefix) (or (not .gateway) (not .ips)) }}
{{- fail (printf "defaultNetwork.ipv6.subnet %q does not end in \"::\" before a length up to 112: say defaultNetwork.ipv6.gateway and .ips as well" .subnet) }}
{{- end }}
{{- $base := first (splitList "/" .subnet) }}
{{- $gateway := .gateway | default (printf "%s1" $base) }}
{{- if eq .subnet $gateway }}{{ fail "defaultNetwork.ipv6.gateway is the subnet" }}{{ end }}
{{- toJson (dict "subnet" .subnet "gateway" $gateway "ips" (.ips | default (list (printf "%s2-%sffff" $base $base)))) }}
{{- end }}
