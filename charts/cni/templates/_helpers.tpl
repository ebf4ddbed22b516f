{{- /* The values: those of the platform fill what is empty, those below "cni" are on top of their fellows; resources that are null are not there. */ -}}
{{- define "cni.values" -}}
{{- $v := deepCopy .Values -}}
{{- $v = mergeOverwrite $v (deepCopy ($v.cni | default dict)) -}}
{{- range $kind, $amounts := $v.resources -}}
{{- range $name, $amount := $amounts -}}{{- if kindIs "invalid" $amount -}}{{- $_ := unset $amounts $name -}}{{- end -}}{{- end -}}
{{- if not $amounts -}}{{- $_ := unset $v.resources $kind -}}{{- end -}}
{{- end -}}
{{- $platforms := dict
  "gke"       (dict "cniBinDir" "/home/kubernetes/bin" "quota" true)
  "openshift" (dict "cniBinDir" "/var/lib/cni/bin" "cniConfDir" "/etc/cni/multus/net.d" "chained" false "cniConfFileName" "ambit-cni.conf" "seLinuxOptions" (dict "type" "spc_t"))
  "k3s"       (dict "cniBinDir" "/var/lib/rancher/k3s/data/cni" "cniConfDir" "/var/lib/rancher/k3s/agent/etc/cni/net.d")
  "k3d"       (dict "cniBinDir" "/bin" "cniConfDir" "/var/lib/rancher/k3s/agent/etc/cni/net.d")
  "microk8s"  (dict "cniBinDir" "/var/snap/microk8s/current/opt/cni/bin" "cniConfDir" "/var/snap/microk8s/current/args/cni-network")
  "minikube"  (dict)
-}}
{{- $name := $v.platform | default $v.global.platform | default "" -}}
{{- if and $name (not (hasKey $platforms $name)) -}}
{{- fail (printf "platform %q is not known: there are %s; leave it empty and set cniBinDir and cniConfDir for another" $name (keys $platforms | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $p := get $platforms $name | default dict -}}
{{- $_ := set $v "cniBinDir" ($v.cniBinDir | default $p.cniBinDir | default "/opt/cni/bin") -}}
{{- $_ := set $v "cniConfDir" ($v.cniConfDir | default $p.cniConfDir | default "/etc/cni/net.d") -}}
{{- $_ := set $v "cniConfFileName" ($v.cniConfFileName | default $p.cniConfFileName | default "") -}}
{{- $_ := set $v "cniNetnsDir" ($v.cniNetnsDir | default "/var/run/netns") -}}
{{- $_ := set $v "seLinuxOptions" ($v.seLinuxOptions | default $p.seLinuxOptions | default dict) -}}
{{- $_ := set $v "chained" (and $v.chained (ne (toString $p.chained) "false")) -}}
{{- if kindIs "invalid" $v.resourceQuotas.enabled -}}{{- $_ := set $v.resourceQuotas "enabled" ($p.quota | default false) -}}{{- end -}}
{{- toYaml $v -}}
{{- end -}}

{{- define "cni.labels" -}}
{{- $v := include "cni.values" . | fromYaml -}}
k8s-app: istio-cni-node
app.kubernetes.io/name: ambit-cni
app.kubernetes.io/component: node-agent
app.kubernetes.io/part-of: ambit
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
istio.io/rev: {{ $v.revision | default "default" }}
{{- end -}}

{{- define "cni.image" -}}
{{- $v := include "cni.values" . | fromYaml -}}
{{- if contains "/" $v.image }}{{ $v.image }}
{{- else }}{{ $v.hub | default $v.global.hub }}/{{ $v.image }}:{{ $v.tag | default $v.global.tag | default .Chart.AppVersion }}
{{- end }}
{{- end -}}

{{- /* The default of upstream's scope:level list; its scopes are not ours. */ -}}
{{- define "cni.logLevel" -}}
{{- $given := regexFind "^[a-z]+$|default:[a-z]+" ((.logging | default dict).level | default (.global.logging | default dict).level | default "") | trimPrefix "default:" -}}
{{- .logLevel | default $given | default "info" -}}
{{- end -}}

{{- /* The ConfigMap of the control plane: that of its revision. */ -}}
{{- define "cni.meshConfigMap" -}}
{{- $revision := .revision | default "default" -}}
{{- .meshConfigMap | default (ternary "istio" (printf "istio-%s" $revision) (eq $revision "default")) -}}
{{- end -}}
