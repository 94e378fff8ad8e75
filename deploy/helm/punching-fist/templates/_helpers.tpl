{{/* Prefix of every name: the release's. */}}
{{- define "fist.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of everything. */}}
{{- define "fist.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: punching-fist
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: punching-fist
{{- end -}}

{{/* Labels by which the pods of one service are known. Takes (dict "root" $ "component" "ingest"). */}}
{{- define "fist.selector" -}}
app.kubernetes.io/name: punching-fist
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* The namespace of cli steps' pods. */}}
{{- define "fist.podNamespace" -}}
{{- .Values.cliRunner.podNamespace | default .Release.Namespace -}}
{{- end -}}

{{/* Reading the cluster, Secrets excepted: what an investigation looks at. No exec, attach, proxy or port-forward. */}}
{{- define "fist.readRules" -}}
- apiGroups: [""]
  resources:
    - configmaps
    - endpoints
    - events
    - limitranges
    - namespaces
    - nodes
    - persistentvolumeclaims
    - persistentvolumes
    - pods
    - pods/log
    - pods/status
    - podtemplates
    - replicationcontrollers
    - resourcequotas
    - serviceaccounts
    - services
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources:
    - controllerrevisions
    - daemonsets
    - deployments
    - deployments/scale
    - replicasets
    - replicasets/scale
    - statefulsets
    - statefulsets/scale
  verbs: [get, list, watch]
- apiGroups: [batch]
  resources: [cronjobs, jobs]
  verbs: [get, list, watch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch]
- apiGroups: [networking.k8s.io]
  resources: [ingressclasses, ingresses, networkpolicies]
  verbs: [get, list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [gatewayclasses, gateways, grpcroutes, httproutes]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [get, list, watch]
- apiGroups: [storage.k8s.io]
  resources: [csidrivers, csinodes, csistoragecapacities, storageclasses, volumeattachments]
  verbs: [get, list, watch]
- apiGroups: [scheduling.k8s.io]
  resources: [priorityclasses]
  verbs: [get, list, watch]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [get, list, watch]
- apiGroups: [metrics.k8s.io]
  resources: [nodes, pods]
  verbs: [get, list, watch]
- apiGroups: [punching-fist.io]
  resources: [workflows]
  verbs: [get, list, watch]
{{- end -}}

{{/* An image. Takes (dict "root" $ "image" .Values.x.image), whose empty fields are those of `image`. */}}
{{- define "fist.image" -}}
{{- $own := .image | default dict -}}
{{- $all := .root.Values.image -}}
image: {{ printf "%s:%s" ($own.repository | default $all.repository) ($own.tag | default $all.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $own.pullPolicy | default $all.pullPolicy }}
{{- end -}}

{{/* The restricted standard, for a pod. */}}
{{- define "fist.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The restricted standard, for a container. */}}
{{- define "fist.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Address of NATS. */}}
{{- define "fist.natsUrl" -}}
{{- if .Values.nats.embedded.enabled -}}
nats://{{ include "fist.fullname" . }}-nats:4222
{{- else -}}
{{- required "nats.external.url is needed where nats.embedded.enabled is false" .Values.nats.external.url -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the passwords of NATS users; nothing where there are none. */}}
{{- define "fist.natsSecret" -}}
{{- if .Values.nats.existingSecret -}}
{{- .Values.nats.existingSecret -}}
{{- else if .Values.nats.embedded.enabled -}}
{{- include "fist.fullname" . }}-nats
{{- end -}}
{{- end -}}

{{- define "fist.natsReplicas" -}}
{{- if .Values.nats.streamReplicas -}}
{{- .Values.nats.streamReplicas -}}
{{- else if .Values.nats.embedded.enabled -}}
{{- .Values.nats.embedded.replicas -}}
{{- else -}}
1
{{- end -}}
{{- end -}}

{{/* How a program reaches NATS as one of the users. Takes (dict "root" $ "user" "ingest"). */}}
{{- define "fist.natsEnv" -}}
- name: FIST_NATS_URL
  value: {{ include "fist.natsUrl" .root | quote }}
{{- if and (not .root.Values.nats.embedded.enabled) .root.Values.nats.external.credentialsSecret }}
- name: FIST_NATS_CREDENTIALS_FILE
  value: /etc/punching-fist/nats/{{ .user }}.creds
{{- else if include "fist.natsSecret" .root }}
- name: FIST_NATS_USER
  value: {{ .user }}
- name: FIST_NATS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "fist.natsSecret" .root }}
      key: {{ .user }}
{{- end }}
{{- if and (not .root.Values.nats.embedded.enabled) .root.Values.nats.external.caSecret }}
- name: FIST_NATS_TLS_CA_FILE
  value: /etc/punching-fist/nats-ca/ca.crt
{{- end }}
{{- end -}}

{{/* Files that this needs. */}}
{{- define "fist.natsMounts" -}}
{{- if not .root.Values.nats.embedded.enabled }}
{{- if .root.Values.nats.external.credentialsSecret }}
- name: nats-credentials
  mountPath: /etc/punching-fist/nats
  readOnly: true
{{- end }}
{{- if .root.Values.nats.external.caSecret }}
- name: nats-ca
  mountPath: /etc/punching-fist/nats-ca
  readOnly: true
{{- end }}
{{- end }}
{{- end -}}

{{- define "fist.natsVolumes" -}}
{{- if not .root.Values.nats.embedded.enabled }}
{{- with .root.Values.nats.external.credentialsSecret }}
- name: nats-credentials
  secret:
    secretName: {{ . }}
    # Each service sees its own user's file only.
    items: [{key: {{ $.user }}.creds, path: {{ $.user }}.creds}]
{{- end }}
{{- with .root.Values.nats.external.caSecret }}
- name: nats-ca
  secret:
    secretName: {{ . }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}
{{- end -}}

{{- define "fist.apiSecret" -}}
{{- .Values.api.existingSecret | default (printf "%s-api" (include "fist.fullname" .)) -}}
{{- end -}}

{{- define "fist.webhookSecret" -}}
{{- .Values.webhook.existingSecret | default (printf "%s-webhook" (include "fist.fullname" .)) -}}
{{- end -}}

{{/* The configuration file. */}}
{{- define "fist.config" -}}
{{- .Values.config | trim }}
{{- range $source, $kind := dict "alertmanager" "alertmanager" "webhook" "generic" }}
{{- if not (regexMatch (printf "(?m)^\\s*\\[\\s*sources\\.\"?%s\"?\\s*\\]" $source) $.Values.config) }}

[sources.{{ $source }}]
kind = "{{ $kind }}"
{{- if $.Values.webhook.requireToken }}
bearer_token_file = "/etc/punching-fist/webhook/token"
{{- else }}
open = true
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
A service's Deployment. Takes a dict: root, component (its binary and NATS user), values (its section), image,
strategy, port, env, mounts, volumes (the last three as YAML text).
*/}}
{{- define "fist.deployment" -}}
{{- $name := printf "%s-%s" (include "fist.fullname" .root) .component -}}
{{- $selector := include "fist.selector" . -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "fist.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  replicas: {{ .values.replicas }}
  revisionHistoryLimit: 3
  strategy:
    {{- .strategy | default "type: RollingUpdate\nrollingUpdate: {maxUnavailable: 0, maxSurge: 1}" | nindent 4 }}
  selector:
    matchLabels:
      {{- $selector | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "fist.labels" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
        {{- with .root.Values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: {{ .component }}
        # A change of the file starts the pods anew.
        punching-fist.io/config-checksum: {{ include "fist.config" .root | sha256sum | trunc 16 | quote }}
        {{- with .root.Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: {{ .token }}
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      # Beyond shutdown.drain_ms (25 s), within which work in hand is finished or handed back.
      terminationGracePeriodSeconds: 30
      securityContext:
        {{- include "fist.podSecurity" .root | nindent 8 }}
      topologySpreadConstraints:
        {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
        - maxSkew: 1
          topologyKey: {{ $key }}
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- $selector | nindent 14 }}
        {{- end }}
      containers:
        - name: {{ .component }}
          {{- include "fist.image" . | nindent 10 }}
          command: [/usr/local/bin/{{ .component }}]
          env:
            - name: FIST_CONFIG
              value: /etc/punching-fist/config/config.toml
            - name: FIST_LOG_FORMAT
              value: json
            - name: FIST_LOG_LEVEL
              value: {{ .root.Values.log.level | quote }}
            {{- include "fist.natsEnv" (dict "root" .root "user" .component) | nindent 12 }}
            {{- .env | nindent 12 }}
            {{- with .values.env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with .values.envFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - name: http
              containerPort: {{ .port }}
          # A slow start (NATS that is not there yet) is the service's own to judge: it ends with the reason.
          startupProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /healthz, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: 2
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            {{- include "fist.containerSecurity" .root | nindent 12 }}
          volumeMounts:
            - name: config
              mountPath: /etc/punching-fist/config
              readOnly: true
            {{- with include "fist.natsMounts" (dict "root" .root) }}
            {{- . | nindent 12 }}
            {{- end }}
            - name: tmp
              mountPath: /tmp
            {{- with .mounts }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with .values.volumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: config
          configMap:
            name: {{ include "fist.fullname" .root }}-config
        {{- with include "fist.natsVolumes" (dict "root" .root "user" .component) }}
        {{- . | nindent 8 }}
        {{- end }}
        - name: tmp
          emptyDir: {sizeLimit: 256Mi}
        {{- with .volumes }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .values.volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end -}}
