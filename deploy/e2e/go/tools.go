//go:build tools

// Package tools names what build.sh builds besides ./kube and go.mod's tools.
package tools

import (
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
