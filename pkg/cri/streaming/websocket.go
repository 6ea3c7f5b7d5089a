package streaming

import (
	"fmt"
	"net/http"
	"strings"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// openWebSocket upgrades the connection to a WebSocket that carries the streams as numbered channels.
//
// Of the protocols the fifth (KEP-4006) lets a client end its stdin: a message of 255 and the channel's number. With
// the older ones, which send the same bytes otherwise, stdin ends with the connection. In base64.* all is text.
func (s *Server) openWebSocket(w http.ResponseWriter, r *http.Request, want channels) (*link, error) {
	kinds := make([]wsstream.ChannelType, 5)
	set := func(channel int, wanted bool, kind wsstream.ChannelType) {
		if wanted {
			kinds[channel] = kind
		}
	}
	set(remotecommand.StreamStdIn, want.stdin, wsstream.ReadChannel)
	set(remotecommand.StreamStdOut, want.stdout, wsstream.WriteChannel)
	set(remotecommand.StreamStdErr, want.stderr, wsstream.WriteChannel)
	set(remotecommand.StreamErr, true, wsstream.WriteChannel)
	// The receiver blocks on a channel that nobody reads: sizes are read with a terminal only.
	set(remotecommand.StreamResize, want.tty, wsstream.ReadChannel)

	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		"":                                      {Binary: true, Channels: kinds},
		wsstream.ChannelWebSocketProtocol:       {Binary: true, Channels: kinds},
		wsstream.Base64ChannelWebSocketProtocol: {Channels: kinds},
		"v4." + wsstream.ChannelWebSocketProtocol:       {Binary: true, Channels: kinds},
		"v4." + wsstream.Base64ChannelWebSocketProtocol: {Channels: kinds},
		remotecommand.StreamProtocolV5Name:              {Binary: true, Channels: kinds},
	})
	conn.SetIdleTimeout(s.idle)
	protocol, streams, err := conn.Open(w, r)
	if err != nil {
		return nil, fmt.Errorf("WebSocket handshake: %w", err)
	}
	status := streams[remotecommand.StreamErr]

	// An empty message on the first channel that is written tells the client that the session stands.
	first := status
	switch {
	case want.stdout:
		first = streams[remotecommand.StreamStdOut]
	case want.stderr:
		first = streams[remotecommand.StreamStdErr]
	}
	_, _ = first.Write(nil)

	return &link{
		stdin:  streams[remotecommand.StreamStdIn],
		stdout: streams[remotecommand.StreamStdOut],
		stderr: streams[remotecommand.StreamStdErr],
		resize: streams[remotecommand.StreamResize],
		finish: func(o outcome) {
			data := o.text()
			if strings.HasPrefix(protocol, "v4.") || strings.HasPrefix(protocol, "v5.") {
				data = o.status()
			}
			if len(data) > 0 {
				// A client that left does not want to know.
				_, _ = status.Write(data)
			}
			_ = conn.Close()
		},
	}, nil
}
