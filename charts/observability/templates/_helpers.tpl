{{- /* The values, with those below "observability" on top of their fellows. */ -}}
{{- define "observability.values" -}}
{{- $v := deepCopy .Values -}}
{{- $v = mergeOverwrite $v (deepCopy ($v.observability | default dict)) -}}
{{- toYaml $v -}}
{{- end -}}

{{- define "observability.labels" -}}
{{- $v := include "observability.values" . | fromYaml -}}
app.kubernetes.io/name: ambit-observability
app.kubernetes.io/component: observability
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
istio.io/rev: {{ $v.revision | default "default" }}
{{- end -}}
