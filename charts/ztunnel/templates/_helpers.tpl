{{- /* The values, with those below "ztunnel" on top of their fellows; resources that are null are not there. */ -}}
{{- define "ztunnel.values" -}}
{{- $v := deepCopy .Values -}}
{{- $v = mergeOverwrite $v (deepCopy ($v.ztunnel | default dict)) -}}
{{- range $kind, $amounts := $v.resources -}}
{{- range $name, $amount := $amounts -}}{{- if kindIs "invalid" $amount -}}{{- $_ := unset $amounts $name -}}{{- end -}}{{- end -}}
{{- if not $amounts -}}{{- $_ := unset $v.resources $kind -}}{{- end -}}
{{- end -}}
{{- $_ := set $v "meshConfig" ($v.meshConfig | default dict) -}}
{{- if eq ($v.platform | default $v.global.platform | default "") "gke" -}}{{- $_ := set $v.resourceQuotas "enabled" true -}}{{- end -}}
{{- toYaml $v -}}
{{- end -}}

{{- define "ztunnel.labels" -}}
{{- $v := include "ztunnel.values" . | fromYaml -}}
app.kubernetes.io/name: ztunnel
app.kubernetes.io/component: node-proxy
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
istio.io/rev: {{ $v.revision | default "default" }}
{{- with $v.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ztunnel.image" -}}
{{- $v := include "ztunnel.values" . | fromYaml -}}
{{- if contains "/" $v.image }}{{ $v.image }}
{{- else }}{{ $v.hub | default $v.global.hub }}/{{ $v.image }}:{{ $v.tag | default $v.global.tag | default .Chart.AppVersion }}
{{- end }}
{{- end -}}

{{- define "ztunnel.istiod" -}}
{{- $v := include "ztunnel.values" . | fromYaml -}}
istiod{{ if and $v.revision (ne $v.revision "default") }}-{{ $v.revision }}{{ end }}.{{ $v.istioNamespace | default .Release.Namespace }}.svc:15012
{{- end -}}
