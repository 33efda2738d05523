"""The manifests on a real Kubernetes with the real KEDA and Knative Serving: `make cluster-test`.

Servers (Kafka, Redis, PostgreSQL, the issuer) and two of the functions run on this machine; the
cluster's pods may be stand-ins that turn Ready and run nothing, so what is shown is what the API
accepts and what the controllers decide. With `PODS=1` the functions are our images in real pods on
this machine (`pods`), and what stands beside them is in `beside`. Both lists of trials are in
`__main__`.
"""
