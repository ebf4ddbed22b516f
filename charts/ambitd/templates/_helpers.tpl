{{- /* The values, with those below "pilot" on top of their fellows; resources that are null are not there. */ -}}
{{- define "ambitd.values" -}}
{{- $v := deepCopy .Values -}}
{{- $v = mergeOverwrite $v (deepCopy ($v.pilot | default dict)) -}}
{{- range $kind, $amounts := $v.resources -}}
{{- range $name, $amount := $amounts -}}{{- if kindIs "invalid" $amount -}}{{- $_ := unset $amounts $name -}}{{- end -}}{{- end -}}
{{- if not $amounts -}}{{- $_ := unset $v.resources $kind -}}{{- end -}}
{{- end -}}
{{- $_ := set $v "meshConfig" ($v.meshConfig | default dict) -}}
{{- toYaml $v -}}
{{- end -}}

{{- define "ambitd.revision" -}}
{{- .revision | default "default" -}}
{{- end -}}

{{- /* What names of a revision end in. */ -}}
{{- define "ambitd.suffix" -}}
{{- if and .revision (ne .revision "default") }}-{{ .revision }}{{ end -}}
{{- end -}}

{{- define "ambitd.labels" -}}
{{- $v := include "ambitd.values" . | fromYaml -}}
app.kubernetes.io/name: ambitd
app.kubernetes.io/component: control-plane
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
istio.io/rev: {{ include "ambitd.revision" $v }}
{{- end -}}

{{- define "ambitd.selector" -}}
app: istiod
istio.io/rev: {{ include "ambitd.revision" . }}
{{- end -}}

{{- define "ambitd.image" -}}
{{- $v := include "ambitd.values" . | fromYaml -}}
{{- if contains "/" $v.image }}{{ $v.image }}
{{- else }}{{ $v.hub | default $v.global.hub }}/{{ $v.image }}:{{ $v.tag | default $v.global.tag | default .Chart.AppVersion }}
{{- end }}
{{- end -}}

{{- /* The image of the proxies of Gateways; empty when none are run. */ -}}
{{- define "ambitd.waypointImage" -}}
{{- $v := include "ambitd.values" . | fromYaml -}}
{{- $image := ($v.global.waypoint | default dict).image -}}
{{- if not $image }}
{{- else if contains "/" $image }}{{ $image }}
{{- else }}{{ $v.hub | default $v.global.hub }}/{{ $image }}:{{ $v.tag | default $v.global.tag | default .Chart.AppVersion }}
{{- end }}
{{- end -}}

{{- /* What the values change of the Deployments of waypoints, as JSON; empty for nothing. */ -}}
{{- define "ambitd.waypointDeployment" -}}
{{- $v := include "ambitd.values" . | fromYaml -}}
{{- $w := $v.global.waypoint | default dict -}}
{{- $pod := pick $w "affinity" "nodeSelector" "tolerations" "topologySpreadConstraints" -}}
{{- range $key, $value := $pod }}{{ if not $value }}{{ $pod = omit $pod $key }}{{ end }}{{ end -}}
{{- $secrets := list -}}
{{- range $v.global.imagePullSecrets }}{{ $secrets = append $secrets (dict "name" .) }}{{ end -}}
{{- if $secrets }}{{ $_ := set $pod "imagePullSecrets" $secrets }}{{ end -}}
{{- $spec := dict -}}
{{- if $pod }}{{ $_ := set $spec "template" (dict "spec" $pod) }}{{ end -}}
{{- if $w.replicaCount }}{{ $_ := set $spec "replicas" (int $w.replicaCount) }}{{ end -}}
{{- if $spec }}{{ dict "spec" $spec | toJson }}{{ end -}}
{{- end -}}

{{- /* The default of upstream's scope:level list; its scopes are not ours. */ -}}
{{- define "ambitd.logLevel" -}}
{{- $given := regexFind "default:[a-z]+" (.global.logging.level | default "") | trimPrefix "default:" -}}
{{- .logLevel | default $given | default "info" -}}
{{- end -}}
