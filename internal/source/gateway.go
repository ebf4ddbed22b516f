package source

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Gateway is the part of gateway.networking.k8s.io Gateway that matters to
// node proxies: which waypoint there is, whom it serves and where it listens.
// Fields of the API that are not here are accepted and not read.
type Gateway struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   GatewaySpec   `json:"spec,omitempty"`
	Status GatewayStatus `json:"status,omitempty"`
}

// GatewaySpec is what was asked for.
type GatewaySpec struct {
	GatewayClassName string            `json:"gatewayClassName"`
	Listeners        []GatewayListener `json:"listeners,omitempty"`
	Addresses        []GatewayAddress  `json:"addresses,omitempty"`
}

// GatewayListener is one port.
type GatewayListener struct {
	Name          string         `json:"name"`
	Hostname      string         `json:"hostname,omitempty"`
	Port          int32          `json:"port"`
	Protocol      string         `json:"protocol"`
	AllowedRoutes *AllowedRoutes `json:"allowedRoutes,omitempty"`
}

// AllowedRoutes says which namespaces may attach; for a waypoint, which may
// use it.
type AllowedRoutes struct {
	Namespaces *RouteNamespaces `json:"namespaces,omitempty"`
}

// RouteNamespaces is Same (the default), All or Selector.
type RouteNamespaces struct {
	From     string                `json:"from,omitempty"`
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// GatewayStatus is what exists.
type GatewayStatus struct {
	Addresses  []GatewayAddress   `json:"addresses,omitempty"`
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// GatewayAddress is an IPAddress (the default) or a Hostname.
type GatewayAddress struct {
	Type  string `json:"type,omitempty"`
	Value string `json:"value"`
}
