package ambit

import (
	"encoding/json"

	"google.golang.org/protobuf/encoding/protojson"
	metav1alpha1 "istio.io/api/meta/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	egresspb "github.com/ambit-mesh/ambit/api/egress"
)

// EgressPolicy is a list of what pods may call outside of the mesh.
type EgressPolicy struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	Spec   egresspb.EgressPolicySpec
	Status metav1alpha1.IstioStatus
}

// object is the JSON of an EgressPolicy.
type object struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              json.RawMessage `json:"spec,omitempty"`
	Status            json.RawMessage `json:"status,omitempty"`
}

// MarshalJSON writes the object as manifests have it.
func (p *EgressPolicy) MarshalJSON() ([]byte, error) {
	o := object{TypeMeta: p.TypeMeta, ObjectMeta: p.ObjectMeta}
	var err error
	if o.Spec, err = protojson.Marshal(&p.Spec); err != nil {
		return nil, err
	}
	if o.Status, err = protojson.Marshal(&p.Status); err != nil {
		return nil, err
	}
	return json.Marshal(o)
}

// UnmarshalJSON reads an object. Fields that it does not know are no error.
func (p *EgressPolicy) UnmarshalJSON(data []byte) error {
	var o object
	if err := json.Unmarshal(data, &o); err != nil {
		return err
	}
	p.TypeMeta, p.ObjectMeta = o.TypeMeta, o.ObjectMeta
	read := protojson.UnmarshalOptions{DiscardUnknown: true}
	if len(o.Spec) > 0 {
		if err := read.Unmarshal(o.Spec, &p.Spec); err != nil {
			return err
		}
	}
	if len(o.Status) > 0 {
		return read.Unmarshal(o.Status, &p.Status)
	}
	return nil
}
