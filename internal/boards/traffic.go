package boards

// Parts of queries of what is carried.
const (
	toNamespace = `destination_workload_namespace=~"$namespace"`
	atSource    = `reporter="source",` + toNamespace
	atTarget    = `reporter="destination",` + toNamespace
	atWaypoint  = `reporter="waypoint",destination_service_namespace=~"$namespace",destination_service=~"$service"`
)

func rate(metric, selector string) string {
	return "rate(" + metric + "{" + selector + "}[$__rate_interval])"
}

func sum(by, expr string) string {
	if by == "" {
		return "sum(" + expr + ")"
	}
	return "sum by (" + by + ") (" + expr + ")"
}

func sumRate(by, metric, selector string) string { return sum(by, rate(metric, selector)) }

// top returns the ten largest.
func top(expr string) string { return "topk(10, " + expr + ")" }

// quantile returns a quantile of a histogram, by labels.
func quantile(q, by, metric, selector string) string {
	le := "le"
	if by != "" {
		le = "le, " + by
	}
	return "histogram_quantile(" + q + ", " + sumRate(le, metric+"_bucket", selector) + ")"
}

// orNone returns 0 in place of no series.
func orNone(expr string) string { return "(" + expr + " or vector(0))" }

func mesh() Board {
	const (
		opened   = "istio_tcp_connections_opened_total"
		failed   = "istio_tcp_connections_failed_total"
		sent     = "istio_tcp_sent_bytes_total"
		received = "istio_tcp_received_bytes_total"
		asked    = "istio_requests_total"
		atAll    = `reporter="waypoint",destination_service_namespace=~"$namespace"`
		pair     = "source_workload_namespace, source_workload, destination_workload_namespace, destination_workload"
	)
	return Board{
		Name: "mesh", Title: "Mesh",
		About:     "Is the mesh in order, and if not, where? Connections are those that node proxies carry, requests those of waypoints.",
		variables: []variable{{"namespace", "Namespace", opened, "destination_workload_namespace"}},
		rows: []row{
			{"Is it in order?", []panel{
				stat("Alerts that fire", plain, "Alerts of the rules that come with Ambit. 0 also when Prometheus does not evaluate these rules.",
					`count(ALERTS{alertname=~"Ambit.*",alertstate="firing"}) or vector(0)`, 1, 2),
				stat("Connections that succeed", share, "Of the connections that pods of the mesh open, the part that ended without a failure.",
					"clamp_min(1 - "+orNone(sumRate("", failed, atSource))+" / "+sumRate("", opened, atSource)+", 0)", 0.99, 0.95),
				stat("Requests without 5xx", share, "Of the requests to services with a waypoint.",
					orNone(sumRate("", asked, atAll+`,response_code!~"5.."`))+" / "+sumRate("", asked, atAll), 0.99, 0.95),
				stat("By mutual TLS", share, "Of the connections to pods of the mesh. The rest comes from outside of it, in plaintext.",
					orNone(sumRate("", opened, atTarget+`,connection_security_policy="mutual_tls"`))+" / "+sumRate("", opened, atTarget), 0.9, 0.5),
				stat("New connections", perSecond, "That pods of the mesh open.", sumRate("", opened, atSource), 0, 0),
				stat("Requests", requests, "To services with a waypoint.", sumRate("", asked, atAll), 0, 0),
			}},
			{"Refusals and failures", []panel{
				chart("Connections that fail, at the client", perSecond,
					"By response flag: DENY is a policy, CONNECT is a destination that cannot be reached or refuses, TLS_FAILURE, IDENTITY_ERROR and CERT_REVOKED are certificates, NETWORK_POLICY is a time-out on port 15008. The log of the node proxy has the reason.",
					sumRate("response_flags", failed, atSource), "{{response_flags}}"),
				chart("Connections that are refused, at the destination", perSecond, "By response flag and workload. DENY is a policy of that workload.",
					sumRate("response_flags, destination_workload_namespace, destination_workload", failed, atTarget), "{{response_flags}} {{destination_workload}}.{{destination_workload_namespace}}"),
				chart("Requests that fail", requests, "Answers of waypoints and services with 4xx and 5xx, by code and flag of Envoy.",
					sumRate("response_code, response_flags", asked, atAll+`,response_code=~"[45].."`), "{{response_code}} {{response_flags}}"),
				table("Pairs with most failures", perSecond, "Clients and destinations of connections that fail. `ambit why` shows the reason.", top(sumRate(pair+", response_flags, reporter", failed, toNamespace))),
				table("Services with most 5xx", requests, "", top(sumRate("destination_service, response_code, response_flags", asked, atAll+`,response_code=~"5.."`))),
			}},
			{"Who talks most?", []panel{
				table("Pairs by bytes", bytesRate, "Both directions, counted at the client.", top(sum(pair, rate(sent, atSource)+" + "+rate(received, atSource)))),
				table("Pairs by new connections", perSecond, "", top(sumRate(pair, opened, atSource))),
				table("Plaintext into the mesh", perSecond, "Connections to pods of the mesh that are not mutual TLS, by destination.", top(sumRate(pair, opened, atTarget+`,connection_security_policy!="mutual_tls"`))),
				table("Services by requests", requests, "", top(sumRate("destination_service", asked, atAll))),
			}},
			{"Connections (L4)", []panel{
				chart("Bytes", bytesRate, "Counted at the client.", sumRate("", sent, atSource), "to clients", sumRate("", received, atSource), "to servers"),
				chart("New connections by destination", perSecond, "", sumRate("destination_workload_namespace", opened, atSource), "{{destination_workload_namespace}}"),
				chart("By mutual TLS, by destination", share, "Of the connections to pods of the mesh.",
					sumRate("destination_workload_namespace", opened, atTarget+`,connection_security_policy="mutual_tls"`)+" / "+sumRate("destination_workload_namespace", opened, atTarget), "{{destination_workload_namespace}}"),
				chart("Open sockets", plain, "Connections of programs and tunnels that node proxies hold.", sum("reporter", "istio_tcp_sockets_open"), "{{reporter}}"),
				chart("Out of the mesh", perSecond, "What outbound traffic policies (registry) and EgressPolicies decided about connections to the outside.",
					sumRate("decision", "ambit_egress_connections_total", ""), "registry: {{decision}}", sumRate("decision", "ambit_egress_policy_connections_total", ""), "EgressPolicy: {{decision}}"),
				chart("Rate limits", perSecond, "New connections that a RateLimit is for.", sumRate("namespace, name, decision", "ambit_rate_limit_connections_total", ""), "{{namespace}}/{{name}}: {{decision}}"),
			}},
			{"Requests (L7)", []panel{
				chart("Requests by code", requests, "", sumRate("response_code", asked, atAll), "{{response_code}}"),
				chart("Duration", millis, "From the head of a request to the end of its response.",
					quantile("0.50", "", "istio_request_duration_milliseconds", atAll), "p50", quantile("0.95", "", "istio_request_duration_milliseconds", atAll), "p95", quantile("0.99", "", "istio_request_duration_milliseconds", atAll), "p99"),
				chart("Requests by service", requests, "", sumRate("destination_service", asked, atAll), "{{destination_service}}"),
			}},
			{"Versions", []panel{table("Programs", plain, "How many of each version run. During an upgrade there are two.", "count by (component, tag) (istio_build)")}},
		},
	}
}

func waypoint() Board {
	const (
		asked    = "istio_requests_total"
		duration = "istio_request_duration_milliseconds"
	)
	return Board{
		Name: "waypoint", Title: "Waypoints and HTTP",
		About: "Which service answers with errors or slowly, and is it the service or the waypoint?",
		variables: []variable{
			{"namespace", "Namespace", asked + `{reporter="waypoint"}`, "destination_service_namespace"},
			{"service", "Service", asked + `{reporter="waypoint",destination_service_namespace=~"$namespace"}`, "destination_service"},
			{"instance", "Waypoint", `istio_build{component="waypoint"}`, "instance"},
		},
		rows: append([]row{
			{"Is it in order?", []panel{
				stat("Requests", requests, "", sumRate("", asked, atWaypoint), 0, 0),
				stat("Without 5xx", share, "", orNone(sumRate("", asked, atWaypoint+`,response_code!~"5.."`))+" / "+sumRate("", asked, atWaypoint), 0.99, 0.95),
				stat("p99 duration", millis, "", quantile("0.99", "", duration, atWaypoint), 1000, 5000),
				stat("Waypoints that run", plain, "", `count(istio_build{component="waypoint",instance=~"$instance"})`, 0, 0),
				stat("Not counted", plain, "Requests of the last hour that are in no series: there were too many series.", orNone("sum(increase(waypoint_requests_uncounted_total[1h]))"), 1, 1000),
				stat("Descriptors", share, "Open files and sockets of the waypoint with most of them, as a part of its limit.", "max("+descriptors("waypoint")+")", 0.7, 0.85),
			}},
			{"Errors", []panel{
				chart("Requests by code", requests, "", sumRate("response_code", asked, atWaypoint), "{{response_code}}"),
				chart("Part with 5xx, by service", share, "",
					sumRate("destination_service", asked, atWaypoint+`,response_code=~"5.."`)+" / "+sumRate("destination_service", asked, atWaypoint), "{{destination_service}}"),
				chart("Answers of the waypoint itself, by flag", requests,
					"Flags of Envoy: UH no endpoint is ready, UF the endpoint cannot be reached (also after retries), UC it closed the connection, UT time-out, NR no route, UAEX the external authorizer, RL a rate limit, UO a bound, DC the client went away, DPE the client broke HTTP.",
					sumRate("response_flags, destination_service", asked, atWaypoint+`,response_flags!="-"`), "{{response_flags}} {{destination_service}}"),
				chart("Retries and outliers", perSecond, "Requests that were sent again, and endpoints that were left out because they could not be reached.",
					sumRate("instance", "waypoint_request_retries_total", `instance=~"$instance"`), "sent again {{instance}}", sumRate("instance", "waypoint_endpoints_left_out_total", `instance=~"$instance"`), "left out {{instance}}"),
				chart("gRPC by status", requests, "", sumRate("grpc_response_status", asked, atWaypoint+`,request_protocol="grpc"`), "{{grpc_response_status}}"),
				table("Clients that get 4xx and 5xx", requests, "", top(sumRate("source_workload_namespace, source_workload, destination_service, response_code, response_flags", asked, atWaypoint+`,response_code=~"[45].."`))),
			}},
			{"Duration and sizes", []panel{
				chart("Duration", millis, "", quantile("0.50", "", duration, atWaypoint), "p50", quantile("0.95", "", duration, atWaypoint), "p95", quantile("0.99", "", duration, atWaypoint), "p99"),
				chart("p99 by service", millis, "", quantile("0.99", "destination_service", duration, atWaypoint), "{{destination_service}}"),
				chart("Sizes, p95", byteCount, "", quantile("0.95", "", "istio_request_bytes", atWaypoint), "requests", quantile("0.95", "", "istio_response_bytes", atWaypoint), "responses"),
			}},
			{"Policies", []panel{
				chart("External authorizers", requests, "", sumRate("authorizer, outcome", "ambit_external_authorizations_total", ""), "{{authorizer}}: {{outcome}}"),
				chart("Dry runs and AUDIT", requests, "What policies that decide nothing would have decided.", sumRate("policy, verdict", "ambit_policy_verdicts_total", ""), "{{policy}}: {{verdict}}"),
				chart("Ports without a protocol", perSecond, "By what has decided whether a connection carries HTTP.", sumRate("decided_by", "ambit_undeclared_connections_total", ""), "{{decided_by}}"),
			}},
			{"Traces and logs", []panel{
				chart("Spans and log records", plain, "A collector that is slow or away costs spans, never requests.",
					"sum("+rate("waypoint_spans_sent_total", "")+")", "spans sent", sumRate("cause", "waypoint_spans_dropped_total", ""), "spans dropped: {{cause}}",
					"sum("+rate("waypoint_log_records_sent_total", "")+")", "records sent", sumRate("cause", "waypoint_log_records_dropped_total", ""), "records dropped: {{cause}}"),
				chart("Lines left out", perSecond, "Lines of the access log beyond the rate of a client.", sumRate("outcome", "waypoint_access_log_suppressed_total", ""), "{{outcome}}"),
			}},
		}, process("waypoint")...),
	}
}
