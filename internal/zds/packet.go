package zds

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/ambit-mesh/ambit/api/zds"
)

// A message that breaks these rules ends the connection that brought it.
var (
	errNoNamespace   = errors.New("a workload came without its namespace")
	errStrayFile     = errors.New("a descriptor came with a message that takes none")
	errNoPayload     = errors.New("message without payload")
	errNoUID         = errors.New("workload without UID")
	errNoInfo        = errors.New("workload without name")
	errKeepAfterSync = errors.New("a workload is to be kept after the list of workloads has ended")
)

// request is a decoded message of the agent's: exactly one field is set.
type request struct {
	add      *addRequest
	del      string
	keep     string
	snapshot bool
}

type addRequest struct {
	uid  string
	info Info
}

// parseRequest decodes what an agent sent. It takes exactly the descriptors
// that the message is to bring, and says so when it is given others.
func parseRequest(p []byte, files int) (request, error) {
	var m pb.WorkloadRequest
	if err := proto.Unmarshal(p, &m); err != nil {
		return request{}, err
	}
	if files > 1 {
		return request{}, fmt.Errorf("%d descriptors in one message", files)
	}
	if add := m.GetAdd(); add != nil {
		switch {
		case add.GetUid() == "":
			return request{}, errNoUID
		case files == 0:
			return request{}, errNoNamespace
		case add.GetWorkloadInfo() == nil:
			return request{}, errNoInfo
		}
		i := add.GetWorkloadInfo()
		return request{add: &addRequest{
			uid:  add.GetUid(),
			info: Info{Name: i.GetName(), Namespace: i.GetNamespace(), ServiceAccount: i.GetServiceAccount()},
		}}, nil
	}
	if files > 0 {
		return request{}, errStrayFile
	}
	switch p := m.GetPayload().(type) {
	case *pb.WorkloadRequest_Keep:
		if p.Keep.GetUid() == "" {
			return request{}, errNoUID
		}
		return request{keep: p.Keep.GetUid()}, nil
	case *pb.WorkloadRequest_Del:
		if p.Del.GetUid() == "" {
			return request{}, errNoUID
		}
		return request{del: p.Del.GetUid()}, nil
	case *pb.WorkloadRequest_SnapshotSent:
		return request{snapshot: true}, nil
	}
	return request{}, errNoPayload
}

// parseHello decodes a proxy's first message.
func parseHello(p []byte, files int) error {
	if files > 0 {
		return errStrayFile
	}
	var m pb.ZdsHello
	if err := proto.Unmarshal(p, &m); err != nil {
		return err
	}
	if v := m.GetVersion(); v != pb.Version_V1 {
		return fmt.Errorf("protocol version %d is not spoken here", v)
	}
	return nil
}

// parseAck decodes a proxy's answer: its words when it refused, and nothing
// when it did what it was asked to.
func parseAck(p []byte, files int) (refusal string, err error) {
	if files > 0 {
		return "", errStrayFile
	}
	var m pb.WorkloadResponse
	if err := proto.Unmarshal(p, &m); err != nil {
		return "", err
	}
	if m.GetAck() == nil {
		return "", errNoPayload
	}
	return m.GetAck().GetError(), nil
}

func encode(m proto.Message) []byte {
	p, err := proto.Marshal(m)
	if err != nil {
		// Only a string that is not UTF-8 cannot be encoded. An empty packet
		// would be an end of file to the peer; this is a message without
		// payload, which it refuses.
		return []byte{0x7a, 0}
	}
	return p
}

func encodeHello() []byte { return encode(&pb.ZdsHello{Version: pb.Version_V1}) }

// encodeAck cuts what does not fit: an error may quote anything.
func encodeAck(err error) []byte {
	ack := &pb.Ack{}
	if err != nil {
		ack.Error = cut(err.Error(), maxPacket-64)
	}
	return encode(&pb.WorkloadResponse{Payload: &pb.WorkloadResponse_Ack{Ack: ack}})
}

func encodeAdd(uid string, i Info) []byte {
	return encode(&pb.WorkloadRequest{Payload: &pb.WorkloadRequest_Add{Add: &pb.AddWorkload{
		Uid:          uid,
		WorkloadInfo: &pb.WorkloadInfo{Name: i.Name, Namespace: i.Namespace, ServiceAccount: i.ServiceAccount},
	}}})
}

func encodeDel(uid string) []byte {
	return encode(&pb.WorkloadRequest{Payload: &pb.WorkloadRequest_Del{Del: &pb.DelWorkload{Uid: uid}}})
}

func encodeKeep(uid string) []byte {
	return encode(&pb.WorkloadRequest{Payload: &pb.WorkloadRequest_Keep{Keep: &pb.KeepWorkload{Uid: uid}}})
}

func encodeSnapshotSent() []byte {
	return encode(&pb.WorkloadRequest{Payload: &pb.WorkloadRequest_SnapshotSent{SnapshotSent: &pb.SnapshotSent{}}})
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// cut makes s valid text of at most n bytes.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
