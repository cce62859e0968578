{{/* A ValidatingAdmissionPolicy about agents, with its binding: name, rule, variables, validations; top = the root. */}}
{{- define "bowline.policy" }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: bowline-{{ .name }}
  labels: {{- include "bowline.labels" .top | nindent 4 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      - {{ toJson .rule }}
  matchConditions:
    - name: agents
      expression: request.userInfo.username == 'system:serviceaccount:{{ .top.Release.Namespace }}:bowline-agent'
  variables:
    - name: node
      expression: >-
        'authentication.kubernetes.io/node-name' in request.userInfo.extra
        ? request.userInfo.extra['authentication.kubernetes.io/node-name'][0] : ''
    {{- range .variables }}
    - {name: {{ .name }}, expression: {{ .expression | quote }}}
    {{- end }}
  validations:
    {{- range .validations }}
    - expression: {{ .expression | quote }}
      messageExpression: {{ .message | quote }}
    {{- end }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: bowline-{{ .name }}
  labels: {{- include "bowline.labels" .top | nindent 4 }}
spec: {policyName: bowline-{{ .name }}, validationActions: [Deny]}
{{- end }}
