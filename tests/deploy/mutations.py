"""Ways to break the manifests, each with what the check has to say of it.

A mutation names a file, a text in it that stands there exactly once (or, with `everywhere`, at
least once), and what it becomes; or, with no old text, what is put at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Mutation:
    name: str
    path: str
    old: str
    new: str
    told: str
    """Part of what the check says."""
    everywhere: bool = False

    def apply(self, root: Path) -> None:
        path = root / self.path
        if not self.old:
            text = path.read_text("utf-8") if path.is_file() else ""
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + self.new, "utf-8")
            return
        text = path.read_text("utf-8")
        found = text.count(self.old)
        assert found == 1 or (self.everywhere and found), f"{self.name}: stands there {found} times"
        path.write_text(text.replace(self.old, self.new), "utf-8")


GATEWAY_SCALED: Final = "platform/gateway/base/scaledobject.yaml"
WAGER: Final = "keda/base/on-wager/deployment.yaml"
SCALED: Final = "keda/base/on-wager/scaledobject.yaml"
BUDGET: Final = "keda/base/on-wager/poddisruptionbudget.yaml"
AUTHENTICATION: Final = "keda/base/on-wager/triggerauthentication.yaml"
QUERY: Final = "knative/base/query/service.yaml"
ERASE: Final = "knative/base/erase/service.yaml"
TIMER: Final = "knative/base/tournament/timer.yaml"
DOMAINS: Final = "knative/domains/domains.yaml"
PRODUCTION: Final = "keda/overlays/production/kustomization.yaml"
DEVELOPMENT: Final = "keda/overlays/development/kustomization.yaml"
RELAY: Final = "keda/components/relay/deployment.yaml"
JOB: Final = "keda/migrate/base/job.yaml"

ROUTE: Final = """apiVersion: example.com/v1
kind: Unheard
metadata: {name: unheard, namespace: leaderboard}
"""
TOPIC: Final = """apiVersion: kafka.strimzi.io/v1
kind: KafkaTopic
metadata: {name: wagers, namespace: kafka}
spec: {partition: 50, replicas: 3}
"""
USER: Final = """apiVersion: kafka.strimzi.io/v1
kind: KafkaUser
metadata: {name: on-wager, namespace: kafka}
spec:
  authentication: {type: scram-sha-512}
  authorization:
    type: simple
    acls: [{resource: {type: topic, name: wagers}, operations: [Reed]}]
"""
SECRET: Final = """apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata: {name: leaderboard, namespace: leaderboard}
spec: {secretStore: {name: vault}}
"""
OWN: Final = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [own.yaml]\n"  # fmt: skip  # noqa: E501

BUILDING: Final = (
    Mutation("a file is missing", PRODUCTION, "../../base", "../../bare", "can't be built"),
    Mutation("an unused component", PRODUCTION, "components:\n  - ../../components/relay\n", "",
             "keda/components/relay: a Component that no kustomization uses"),
    Mutation("a stray file", "keda/base/on-wager/stray.yaml", "", "kind: Secret\n",
             "stray.yaml: is named by no kustomization"),
    Mutation("a patch of no one", DEVELOPMENT, "value: lag}", "value: leg}", "can't be built"),
    Mutation("a field that kustomize will drop", DEVELOPMENT, "", "commonLabels: {a: b}\n",
             "is built with a warning"),
    Mutation("a function left out", "knative/base/kustomization.yaml", "  - erase\n", "",
             "production: has no Service erase"),
    Mutation("a namespace that nobody makes", DEVELOPMENT, "namespace: leaderboard\n",
             "namespace: boards\n",
             "writes to namespace boards, which its platform has not"),
)  # fmt: skip
SCHEMAS: Final = (
    Mutation("unknown field of a Deployment", WAGER, "minReadySeconds", "minReadySecond",
             "unknown field minReadySecond"),
    Mutation("unknown field of a container", WAGER, "readOnlyRootFilesystem", "readOnlyRootFs",
             "unknown field readOnlyRootFs"),
    Mutation("unknown field of a ScaledObject", SCALED, "maxReplicaCount", "maxReplicas",
             "spec: unknown field maxReplicas"),
    Mutation("unknown field of a policy", SCALED, "type: Pods, value: 50, periodSeconds: 15",
             "type: Pods, value: 50, seconds: 15, periodSeconds: 15", "unknown field seconds"),
    Mutation("unknown field of a Knative Service", QUERY, "timeoutSeconds: 60", "timeout: 60",
             "spec.template.spec: unknown field timeout"),
    Mutation("unknown field of a template's metadata", QUERY, "      annotations:", "      notes:",
             "spec.template.metadata: unknown field notes"),
    Mutation("unknown field of a PingSource", TIMER, "contentType", "contenttype",
             "unknown field contenttype"),
    Mutation("unknown field of a DomainMapping", DOMAINS, "secretName", "secret",
             "unknown field secret"),
    Mutation("unknown field of a budget", BUDGET, "maxUnavailable: 1", "maxUnavailables: 1",
             "unknown field maxUnavailables"),
    Mutation("unknown field of a Job", JOB, "backoffLimit", "backOffLimit",
             "unknown field backOffLimit"),
    Mutation("unknown field of a TriggerAuthentication", AUTHENTICATION, "secretTargetRef",
             "secretRef", "unknown field secretRef"),
    Mutation("a word for a number", SCALED, "maxReplicaCount: 50", "maxReplicaCount: fifty",
             "spec.maxReplicaCount: 'fifty' is not of type 'integer'"),
    Mutation("a number for a word", QUERY, 'min-scale: "2"', "min-scale: 2",
             "is not of type 'string'"),
    Mutation("a behaviour that KEDA has not", SCALED, "currentReplicasIfHigher",
             "currentReplicasIfLarger", "'currentReplicasIfLarger' is not one of"),
    Mutation("a field behind a flag", QUERY, "      timeoutSeconds: 60",
             "      timeoutSeconds: 60\n      nodeSelector: {disk: fast}",
             "needs Knative's feature flag kubernetes.podspec-nodeselector"),
    Mutation("a kind that nobody knows", "platform/own/own.yaml", "", ROUTE,
             "no schema is known for example.com/v1 Unheard"),
    Mutation("unknown field of a KafkaTopic", "platform/own/own.yaml", "", TOPIC,
             "KafkaTopic wagers: spec: unknown field partition"),
    Mutation("unknown field of a Kafka", "platform/kafka/cluster/kafka.yaml", "secretPrefix",
             "secretsPrefix", "Kafka leaderboard: spec.entityOperator.userOperator: unknown field"),
    Mutation("an operation that Kafka has not", "platform/own/own.yaml", "", USER,
             "spec.authorization.acls[0].operations[0]: 'Reed' is not one of"),
    Mutation("unknown field of an ExternalSecret", "platform/own/own.yaml", "", SECRET,
             "spec: unknown field secretStore"),
    Mutation("a claim in a namespace", DOMAINS, "kind: ClusterDomainClaim\nmetadata:\n",
             "kind: ClusterDomainClaim\nmetadata:\n  namespace: leaderboard\n",
             "a cluster's own resource lies in none"),
    Mutation("a mapping in no namespace", DOMAINS, "  namespace: leaderboard\n  labels", "  labels",
             "metadata.namespace: is missing"),
)  # fmt: skip
TRIGGERS: Final = (
    Mutation("a scaler that KEDA has not", SCALED, "type: kafka", "type: kafkaa",
             "KEDA has no scaler 'kafkaa'"),
    Mutation("a key that KEDA ignores", SCALED, "lagThreshold", "lagTreshold",
             "metadata.lagTreshold is none of KEDA's parameters"),
    Mutation("a key from nowhere", SCALED, "bootstrapServersFromEnv", "lagThresholdFromEnv",
             "metadata.lagThresholdFromEnv is none of KEDA's parameters"),
    Mutation("a key that is missing", SCALED, "        consumerGroup: on-wager\n", "",
             "metadata.consumerGroup is missing"),
    Mutation("a value that KEDA has not", SCALED, "scram_sha512", "scram-sha-512",
             "metadata.sasl is 'scram-sha-512', and KEDA takes none, plaintext"),
    Mutation("a number for a trigger", SCALED, 'lagThreshold: "2000"', "lagThreshold: 2000",
             "metadata.lagThreshold is no string: quote it"),
    Mutation("no such authentication", SCALED, "authenticationRef: {name: on-wager}",
             "authenticationRef: {name: on-wagers}", "there is no such TriggerAuthentication"),
    Mutation("a parameter that is not taken", AUTHENTICATION, "parameter: password",
             "parameter: passwort", "gives passwort, which this scaler does not take"),
    Mutation("an address that is missing", SCALED, "valueLocation: floor", "format: json",
             "metadata.valueLocation is missing"),
)  # fmt: skip
POLICIES: Final = (
    Mutation("an end without a word", WAGER,
             "          terminationMessagePolicy: FallbackToLogsOnError\n", "",
             "terminationMessagePolicy has to be FallbackToLogsOnError"),
    Mutation("no account", WAGER, "      serviceAccountName: on-wager\n", "",
             "serviceAccountName is missing"),
    Mutation("an account that is none", WAGER, "serviceAccountName: on-wager",
             "serviceAccountName: default", "there is no such ServiceAccount"),
    Mutation("a token in a pod", WAGER, "automountServiceAccountToken: false",
             "automountServiceAccountToken: true", "automountServiceAccountToken has to be false"),
    Mutation("a token for nothing", QUERY, "        - {name: tmp, emptyDir: {}}\n",
             "        - {name: tmp, emptyDir: {}}\n        - name: account\n          projected:\n"
             "            sources: [{serviceAccountToken: {path: token}}]\n",
             "no volume may have a serviceAccountToken"),
    Mutation("no token where one is used", "knative/base/tournament/service.yaml",
             "              - serviceAccountToken: {path: token, expirationSeconds: 3600}\n", "",
             "a volume with its serviceAccountToken is missing"),
    Mutation("a token in an account", "keda/base/on-wager/serviceaccount.yaml",
             "automountServiceAccountToken: false", "automountServiceAccountToken: true",
             "ServiceAccount on-wager: automountServiceAccountToken has to be false"),
    Mutation("the host's network", WAGER, "      topologySpread",
             "      hostNetwork: true\n      topologySpread", "hostNetwork is not allowed"),
    Mutation("the host's files", WAGER, "secret: {secretName: kafka-ca, optional: true}",
             "hostPath: {path: /etc}", "volume kafka-ca: hostPath is not allowed"),
    Mutation("the host's port", WAGER, "containerPort: 8080}", "containerPort: 8080, hostPort: 80}",
             "hostPort is not allowed"),
    Mutation("perhaps root", WAGER, "        runAsNonRoot: true\n", "",
             "securityContext.runAsNonRoot has to be True"),
    Mutation("root", WAGER, "runAsUser: 65532", "runAsUser: 0", "root is not allowed"),
    Mutation("a privileged container", JOB, "allowPrivilegeEscalation: false",
             "allowPrivilegeEscalation: false\n            privileged: true",
             "securityContext.privileged is not allowed"),
    Mutation("more privileges", ERASE, "allowPrivilegeEscalation: false",
             "allowPrivilegeEscalation: true", "allowPrivilegeEscalation has to be False"),
    Mutation("a root to write on", QUERY, "readOnlyRootFilesystem: true",
             "readOnlyRootFilesystem: false", "readOnlyRootFilesystem has to be True"),
    Mutation("capabilities", QUERY, "capabilities: {drop: [ALL]}", "capabilities: {drop: [KILL]}",
             "securityContext.capabilities has to be"),
    Mutation("no seccomp", RELAY, "        seccompProfile: {type: RuntimeDefault}\n", "",
             "securityContext.seccompProfile has to be"),
    Mutation("no limit", WAGER, 'limits: {cpu: "2", memory: 512Mi}', 'limits: {cpu: "2"}',
             "resources.limits.memory is missing"),
    Mutation("no request", QUERY, "requests: {cpu: 250m, memory: 192Mi}",
             "requests: {cpu: 250m}", "resources.requests.memory is missing"),
    Mutation("a request above its limit", WAGER, "requests: {cpu: 500m, memory: 256Mi}",
             "requests: {cpu: 500m, memory: 1Gi}", "resources.requests.memory 1Gi is above"),
    Mutation("a forgotten tag", PRODUCTION,
             '  - {name: leaderboard/on-wager, newTag: "0.1.0"}\n', "",
             "keda/overlays/production: Deployment on-wager: container on-wager: image "
             "leaderboard/on-wager has no tag and no digest: set newTag or digest"),
    Mutation("a forgotten tag of a Service", "knative/overlays/production/kustomization.yaml",
             '  - {name: leaderboard/query, newTag: "0.1.0"}\n', "",
             "image leaderboard/query has no tag and no digest"),
    Mutation("latest", PRODUCTION, 'leaderboard/on-wager, newTag: "0.1.0"',
             "leaderboard/on-wager, newTag: latest", "latest is another image each day"),
    Mutation("no image", WAGER, "image: leaderboard/on-wager", 'image: ""', "image '' is none"),
    Mutation("a setting twice", WAGER, '- {name: PORT, value: "8080"}',
             '- {name: PORT, value: "8080"}\n            - {name: PORT, value: "8080"}',
             "PORT is set twice"),
    Mutation("a secret in plain sight", ERASE,
             "valueFrom: {secretKeyRef: {name: leaderboard, key: TOMBSTONE_KEY}}",
             "value: this-one-is-long-enough-to-be-a-key-of-ours",
             "TOMBSTONE_KEY: a secret in plain sight"),
    Mutation("a password in an address", ERASE,
             "valueFrom: {configMapKeyRef: {name: leaderboard, key: GATEWAY_PUBLISH_URL}}",
             "value: http://us:word@gateway", "GATEWAY_PUBLISH_URL: a secret in plain sight"),
    Mutation("a secret from a ConfigMap", WAGER,
             "secretKeyRef: {name: stores-on-wager, key: REDIS_URL",
             "configMapKeyRef: {name: leaderboard, key: REDIS_URL",
             "REDIS_URL: a secret does not belong into a ConfigMap"),
    Mutation("a Secret", "keda/base/on-wager/serviceaccount.yaml", "",
             "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\n",
             "a Secret does not belong into the repository"),
    Mutation("a ConfigMap with a secret", "keda/base/on-wager/serviceaccount.yaml", "",
             "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: s}\ndata: {A_PASSWORD: x}\n",
             "data.A_PASSWORD: a secret does not belong into a ConfigMap"),
    Mutation("a public erase", ERASE,
             "    networking.knative.dev/visibility: cluster-local\n", "",
             "Service erase: is public"),
    Mutation("a mapping to erase", DOMAINS, "name: query}\n  tls", "name: erase}\n  tls",
             "publishes erase, which is not public"),
    Mutation("a mapping that nobody claimed", DOMAINS,
             "DomainClaim\nmetadata:\n  name: play", "DomainClaim\nmetadata:\n  name: pay",
             "has no ClusterDomainClaim of its name"),
)  # fmt: skip
SCALING: Final = (
    Mutation("a floor above the ceiling", SCALED, "minReplicaCount: 2", "minReplicaCount: 60",
             "the floor 60 is above the ceiling 50"),
    Mutation("a Service's floor above its ceiling", QUERY, 'min-scale: "2"', 'min-scale: "51"',
             "Service query: the floor 51 is above the ceiling 50"),
    Mutation("no floor", SCALED, "minReplicaCount: 2", "minReplicaCount: 0",
             "the floor is 0: from nothing"),
    Mutation("one replica in production", QUERY, 'min-scale: "2"', 'min-scale: "1"',
             "the floor is 1: in production"),
    Mutation("more replicas than partitions", SCALED, "maxReplicaCount: 50",
             "maxReplicaCount: 100", "100 replicas are more than the topic's 50 partitions"),
    Mutation("an uneven floor", SCALED, "minReplicaCount: 2", "minReplicaCount: 3",
             "3 replicas do not divide the topic's 50 partitions"),
    Mutation("unknown partitions", SCALED, 'leaderboard.io/partitions: "50"', 'other: "50"',
             "annotation leaderboard.io/partitions has to say how many partitions"),
    Mutation("a target that is none", SCALED, "scaleTargetRef: {name: on-wager}",
             "scaleTargetRef: {name: on-wagers}", "there is no such Deployment"),
    Mutation("replicas set twice", WAGER, "  revisionHistoryLimit: 5",
             "  replicas: 2\n  revisionHistoryLimit: 5", "on-wager sets replicas: an apply would"),
    Mutation("a fallback that shrinks", SCALED, "currentReplicasIfHigher", "static",
             "fallback.behavior has to be currentReplicasIfHigher"),
    Mutation("a fallback below the floor", SCALED, "replicas: 10", "replicas: 1",
             "fallback.replicas 1 is not between"),
    Mutation("a pace that nobody keeps", SCALED, "  minReplicaCount: 2",
             "  pollingInterval: 5\n  minReplicaCount: 2", "pollingInterval does nothing where"),
    Mutation("no speed", SCALED, "        scaleUp:\n          stabilizationWindowSeconds: 0\n"
             "          # Kubernetes' own lets a tenth be: 46 would stay where a floor of 50 is "
             'wanted.\n          tolerance: "0"\n'
             "          policies:\n            - {type: Pods, value: 50, periodSeconds: 15}\n", "",
             "behavior.scaleUp is missing"),
    Mutation("a floor that is nearly reached", GATEWAY_SCALED, '          tolerance: "0"\n', "",
             "ScaledObject gateway: behavior.scaleUp.tolerance has to be 0"),
    Mutation("too slow up", SCALED, "type: Pods, value: 50, periodSeconds: 15",
             "type: Pods, value: 4, periodSeconds: 15", "takes longer than 30 s"),
    Mutation("too fast down", SCALED, "stabilizationWindowSeconds: 300",
             "stabilizationWindowSeconds: 0", "behavior.scaleDown has to be slow"),
    Mutation("uneven", SCALED, '        ensureEvenDistributionOfPartitions: "true"\n', "",
             "ensureEvenDistributionOfPartitions has to be"),
    Mutation("only partitions with lag", SCALED, "        version: 3.6.0",
             '        limitToPartitionsWithLag: "true"\n        version: 3.6.0',
             "limitToPartitionsWithLag excludes"),
    Mutation("another way to tournament", SCALED, "/internal/v1/floors/on-wager",
             "/v1/floors/on-wager", "is not where tournament tells floors"),
    Mutation("another namespace", PRODUCTION, "fieldPath: metadata.namespace",
             "fieldPath: metadata.name", "asks tournament in namespace on-wager"),
    Mutation("another function's floor", SCALED, "floors/on-wager", "floors/archive",
             "asks for the floor of archive"),
    Mutation("a floor of tens", SCALED, 'targetValue: "1"', 'targetValue: "10"',
             "valueLocation has to be floor and targetValue 1"),
    Mutation("no ceiling", QUERY, '        autoscaling.knative.dev/max-scale: "50"\n', "",
             "annotation autoscaling.knative.dev/max-scale is missing or no number"),
    Mutation("threads that are not used", QUERY, 'name: THREADS, value: "16"',
             'name: THREADS, value: "8"', "has 8 threads and is scaled by 16"),
    Mutation("no probe", QUERY, "          readinessProbe:\n            httpGet: {path: /readyz}\n"
             "            periodSeconds: 5\n            timeoutSeconds: 5\n", "",
             "readinessProbe is missing"),
    Mutation("no budget", "keda/base/on-wager/kustomization.yaml",
             "  - poddisruptionbudget.yaml\n", "", "has no PodDisruptionBudget of its name"),
    Mutation("a budget of nothing", BUDGET, "matchLabels: {app.kubernetes.io/name: on-wager}",
             "matchLabels: {app.kubernetes.io/name: off-wager}",
             "chooses 0 workloads, and has to choose one"),
    Mutation("sockets of one pod", GATEWAY_SCALED, "aggregationType: sum", "aggregationType: max",
             "aggregationType has to be sum"),
    Mutation("sockets of no Service", GATEWAY_SCALED, "//gateway-publish.", "//gateway-other.",
             "there is no Service gateway-other"),
    Mutation("sockets of other pods", "platform/gateway/base/services.yaml",
             "clusterIP: None\n  selector: {app.kubernetes.io/name: gateway}",
             "clusterIP: None\n  selector: {app.kubernetes.io/name: other}",
             "Service gateway-publish chooses other pods"),
    Mutation("sockets on another port", GATEWAY_SCALED, ":8081/", ":8082/",
             "asks on port 8082, which no container of gateway has"),
    Mutation("a budget that holds nodes", BUDGET, "maxUnavailable: 1", "minAvailable: 2",
             "minAvailable would hold a node"),
)  # fmt: skip
AGREEMENT: Final = (
    Mutation("a setting that is not read", WAGER, "name: TOMBSTONE_KEY", "name: TOMBSTONES_KEY",
             "sets TOMBSTONES_KEY, which on-wager does not read"),
    Mutation("a setting that is missing", JOB, "name: DATABASE_URL", "name: DATABASES_URL",
             "does not set DATABASE_URL, without which migrate does not start"),
    Mutation("a key that nobody is told of", WAGER, "name: stores-on-wager, key: DATABASE_URL",
             "name: stores-on-wager, key: DATABASE", "with DATABASE is not in platform/settings"),
    Mutation("another setting's key", WAGER, "name: stores-on-wager, key: DATABASE_URL",
             "name: stores-on-wager, key: REDIS_URL", "DATABASE_URL is taken from REDIS_URL"),
    Mutation("another function's user", WAGER, "value: on-wager}", "value: archive}",
             "KAFKA_SASL_USERNAME has to be on-wager"),
    Mutation("another command", WAGER, "functions/on-wager/main.py", "functions/archive/main.py",
             "runs python functions/archive/main.py, and the stacks"),
    Mutation("another target", ERASE, "--target, erase", "--target, erased", "and the stacks"),
    Mutation("another function's image", WAGER, "image: leaderboard/on-wager",
             "image: leaderboard/archive", "is not that of on-wager"),
    Mutation("an image without its libraries", JOB, "image: leaderboard/archive",
             "image: leaderboard/on-rank-change:0.1.0", "is built without the extra sql"),
    Mutation("an older image", PRODUCTION, 'leaderboard/archive, newTag: "0.1.0"',
             'leaderboard/archive, newTag: "0.0.9"', "the project's version is 0.1.0"),
    Mutation("another port", WAGER, "containerPort: 8080", "containerPort: 8081",
             "has to have one port, 8080"),
    Mutation("another PORT", WAGER, 'name: PORT, value: "8080"', 'name: PORT, value: "80"',
             "PORT has to be 8080"),
    Mutation("Knative's PORT", QUERY, "- {name: THREADS",
             '- {name: PORT, value: "8080"}\n            - {name: THREADS',
             "sets PORT, which Knative sets itself"),
    Mutation("a probe of a route that is none", RELAY, "path: /readyz", "path: /ready",
             "readinessProbe asks /ready, and has to ask /readyz"),
    Mutation("no time to drain", WAGER, "terminationGracePeriodSeconds: 60",
             "terminationGracePeriodSeconds: 5", "has 5 s to drain"),
    Mutation("a third trigger", SCALED, "",
             "    - {type: cron, name: cron, metadata: {timezone: UTC, start: 0 1 * * *, "
             "end: 0 2 * * *, desiredReplicas: '9'}}\n", "has to have two triggers"),
    Mutation("partitions of another place", DEVELOPMENT, 'partitions, value: "10"',
             'partitions, value: "20"', "the topics of development have 10 partitions"),
    Mutation("another group", SCALED, "consumerGroup: on-wager", "consumerGroup: on-wagers",
             "consumerGroup on-wagers: on-wager's is its own name"),
    Mutation("no such topic", SCALED, "topic: wagers", "topic: wager",
             "topic wager: there is none of this name"),
    Mutation("another function's topic", SCALED, "topic: wagers", "topic: position-changes",
             "topic position-changes: on-wager does not read it first"),
    Mutation("a new group that skips", SCALED, "offsetResetPolicy: earliest",
             "offsetResetPolicy: latest", "offsetResetPolicy has to be earliest"),
    Mutation("servers from nowhere", SCALED, "bootstrapServersFromEnv: KAFKA_BOOTSTRAP_SERVERS",
             "bootstrapServersFromEnv: KAFKA_SERVERS", "on-wager has no such setting"),
    Mutation("plain in production", SCALED, "        tls: enable\n", "        tls: disable\n",
             "has to speak SCRAM-SHA-512 over TLS"),
    Mutation("a timer for another", TIMER, "name: tournament}\n", "name: query}\n",
             "has to send to the Service tournament"),
)  # fmt: skip
SOURCE: Final = "knative/eventing/kafka-source/erasure-requests.yaml"
BROKER: Final = "knative/eventing/broker/broker.yaml"
TRIGGER: Final = "knative/eventing/broker/triggers.yaml"
EVENTING: Final = (
    Mutation("unknown field of a KafkaSource", SOURCE, "consumerGroup", "group",
             "spec: unknown field group"),
    Mutation("unknown field of a delivery", SOURCE, "backoffDelay", "backOffDelay",
             "unknown field backOffDelay"),
    Mutation("unknown field of a Trigger", TRIGGER, "  filters:", "  filterss:",
             "unknown field filterss"),
    Mutation("unknown field of a KafkaSink", "knative/eventing/dead-letters/refused-events.yaml",
             "contentMode", "contentmode", "unknown field contentmode"),
    Mutation("a sink that takes no events", SOURCE, "name: erase}\n", "name: query}\n",
             "sink query takes no events"),
    Mutation("no order", SOURCE, "ordering: ordered", "ordering: unordered",
             "ordering has to be ordered: a tournament"),
    Mutation("no dead letters", BROKER, "    deadLetterSink:\n      ref: {apiVersion: "
             "eventing.knative.dev/v1alpha1, kind: KafkaSink, name: refused-events}\n", "",
             "delivery.deadLetterSink is missing: say what becomes"),
    Mutation("no retries", SOURCE, "    retry: 6\n", "", "delivery.retry is missing"),
    Mutation("dead letters for nobody", SOURCE, "name: refused-events", "name: refused",
             "deadLetterSink refused: there is no such KafkaSink"),
    Mutation("a Trigger without order", TRIGGER, "delivery.order: ordered",
             "delivery.order: unordered", "delivery.order has to be ordered: the default",
             everywhere=True),
    Mutation("a Trigger of no Broker", BROKER, "kind: Broker\nmetadata:\n  name: leaderboard",
             "kind: Broker\nmetadata:\n  name: board", "there is no such Broker"),
    Mutation("a Trigger for everything", TRIGGER,
             "  filter:\n    attributes: {type: io.leaderboard.erasure.requested.v1}\n", "",
             "has to filter by type: the function"),
    Mutation("a type that is not taken", TRIGGER, "score.submitted.v1", "score.submitted.v2",
             "type io.leaderboard.score.submitted.v2 is none that on-wager-http"),
)  # fmt: skip
MONITOR: Final = "platform/observability/podmonitor.yaml"
EYES: Final = "platform/network/default.yaml"
ARROWS: Final = "platform/network/functions.yaml"
WIRING: Final = (
    Mutation("a Secret of another name for KEDA", AUTHENTICATION, "name: kafka-on-wager,",
             "name: kafka-on-wagers,", "TriggerAuthentication on-wager: spec.secretTargetRef[0]: "
             "Secret kafka-on-wagers with key password is not in platform/settings"),
    Mutation("another key of a Secret for KEDA", AUTHENTICATION, "key: password", "key: passwort",
             "Secret kafka-on-wager with key passwort is not in platform/settings"),
    Mutation("another function's password for KEDA", AUTHENTICATION, "name: kafka-on-wager,",
             "name: kafka-archive,", "spec.secretTargetRef[0]: kafka-archive/password is not what "
             "the pods have as KAFKA_SASL_PASSWORD"),
    Mutation("another authority for KEDA", AUTHENTICATION, "name: kafka-ca,",
             "name: kafka-eventing,", "spec.secretTargetRef[1]: Secret kafka-eventing is mounted "
             "in none of the pods"),
    Mutation("a user of no container", AUTHENTICATION, "containerName: on-wager",
             "containerName: wager", "TriggerAuthentication on-wager: spec.env[0].containerName "
             "wager: on-wager has no such container"),
    Mutation("a user of no variable", AUTHENTICATION, "name: KAFKA_SASL_USERNAME",
             "name: KAFKA_USERNAME", "spec.env[0].name KAFKA_USERNAME: the container's environment "
             "has none"),
    Mutation("an authentication of nobody", SCALED, "      authenticationRef: {name: on-wager}\n",
             "      authenticationRef: {name: archive}\n",
             "TriggerAuthentication on-wager: no ScaledObject's authenticationRef names it"),
    Mutation("an environment of no container", SCALED, "scaleTargetRef: {name: on-wager}",
             "scaleTargetRef: {name: on-wager, envSourceContainerName: wager}", "ScaledObject "
             "on-wager: spec.scaleTargetRef.envSourceContainerName wager: no container of this"),
    Mutation("a monitor of no pods", MONITOR, "matchLabels: {app.kubernetes.io/part-of: leader",
             "matchLabels: {app.kubernetes.io/part-of: lead", "PodMonitor leaderboard: "
             "spec.selector: chooses none of the pods that we make"),
    Mutation("a monitor of no port", MONITOR, "port: http,", "port: metrics,",
             "PodMonitor leaderboard: spec.podMetricsEndpoints[0].port metrics: no container of "
             "the pods that it chooses has this port"),
    Mutation("a port of another name", WAGER, "name: http, containerPort",
             "name: web, containerPort", "no PodMonitor asks Deployment on-wager for its metrics"),
    Mutation("eyes on a port of nobody", EYES, "{port: 9091}, {port: 8081}]",
             "{port: 9091}, {port: 8082}]", "NetworkPolicy observability: "
             "spec.ingress[0].ports[3].port 8082: none of the pods that it chooses has it"),
    Mutation("eyes kept out", EYES, "ports: [{port: 8080}, {port: 9090}", "ports: [{port: 9090}",
             "no NetworkPolicy lets observability ask Deployment archive for metrics on port 8080"),
    Mutation("no way to the collector", EYES, "{port: 4318}", "{port: 4319}",
             "NetworkPolicy observability: spec.egress[0]: does not let through to OTEL_EXPORTER"),
    Mutation("an arrow to a port of nobody", ARROWS, "app.kubernetes.io/name: gateway}}\n"
             "      ports: [{port: 8081}]\n---\napiVersion: networking.k8s.io/v1\n"
             "kind: NetworkPolicy\nmetadata:\n  name: gateway-clients",
             "app.kubernetes.io/name: gateway}}\n"
             "      ports: [{port: 8082}]\n---\napiVersion: networking.k8s.io/v1\n"
             "kind: NetworkPolicy\nmetadata:\n  name: gateway-clients",
             "NetworkPolicy to-gateway: spec.egress[0].ports[0].port 8082: none of the pods that"),
    Mutation("an arrow to nobody", ARROWS, "podSelector: {matchLabels: {app.kubernetes.io/name: "
             "relay}}", "podSelector: {matchLabels: {app.kubernetes.io/name: relais}}",
             "NetworkPolicy outbox: spec.podSelector: no pods of ours are labelled "
             "app.kubernetes.io/name: relais"),
)  # fmt: skip
TOURNAMENT: Final = "knative/base/tournament/service.yaml"
BOUNDS: Final = (
    Mutation("a gateway that no schedule raises", GATEWAY_SCALED, "name: floor", "name: flor",
             "ScaledObject gateway: has no trigger `floor`"),
    Mutation("sockets of another function's floor", GATEWAY_SCALED, "floors/gateway",
             "floors/query", "asks for the floor of query"),
    Mutation("a schedule's ceiling above the partitions", TOURNAMENT,
             'name: PREWARM_CEILING, value: "50"', 'name: PREWARM_CEILING, value: "100"',
             "knative/overlays/production: Service tournament: env PREWARM_CEILING is 100, and "
             "ScaledObjects have 50"),
    Mutation("a schedule's floor below the floor", TOURNAMENT,
             '            - {name: PREWARM_LEAST, value: "2"}\n', "", "can't be built"),
    Mutation("development's floor in a schedule", "knative/overlays/development/kustomization.yaml",
             'env/16/value, value: "1"', 'env/16/value, value: "2"',
             "Service tournament: env PREWARM_LEAST is 2, and ScaledObjects have 1"),
)  # fmt: skip
RULES: Final = "platform/observability/prometheusrule.yaml"
METRICS: Final = (
    Mutation("a rule on a misspelt metric", RULES, "(leaderboard_rank_changes_total[5m])",
             "(leaderboard_rank_change_total[5m])", "PrometheusRule leaderboard: "
             "spec.groups[0].rules[9].expr (leaderboard:rank_unchanged:ratio_rate5m): no such "
             "series: leaderboard_rank_change_total; did you mean leaderboard_rank_changes_total?"),
    Mutation("a rule on nobody's metric", RULES, "max(leaderboard_outbox_refused)",
             "max(outbox_refused)", "(OutboxRefused): no such series: outbox_refused"),
    Mutation("a rule on another label", RULES, 'leaderboard_lag_records{function="archive"}',
             'leaderboard_lag_records{functions="archive"}',
             "leaderboard_lag_records has no label functions; did you mean function?"),
    Mutation("a panel of a misspelt metric",
             "platform/observability/dashboards/leaderboard-tournament.json",
             "max(leaderboard_tournament_players{", "max(leaderboard_tournament_player{",
             "ConfigMap leaderboard-dashboards: data.leaderboard-tournament.json: panel 'Players': "
             "no such series: leaderboard_tournament_player"),
    Mutation("a choice of a misspelt metric",
             "platform/observability/dashboards/leaderboard-function.json",
             "label_values(leaderboard_ready,", "label_values(leaderboard_readi,",
             "variable function: no such series: leaderboard_readi; did you mean"),
    Mutation("a trigger on a misspelt metric", GATEWAY_SCALED, "",
             "    - type: prometheus\n      name: sockets\n      metadata:\n"
             "        serverAddress: http://prometheus.observability.svc:9090\n"
             "        query: max(leaderboard_connection)\n        threshold: '6000'\n",
             "ScaledObject gateway: spec.triggers[2].metadata.query: no such series: "
             "leaderboard_connection; did you mean leaderboard_connections?"),
)  # fmt: skip
MINE: Final = "platform/settings/mine.yaml"
FILLED_IN: Final = (
    Mutation("a setting that is misspelt", "platform/settings/example.yaml",
             "  KAFKA_SASL_MECHANISM: ", "  KAFKA_SASL_MECHANISMS: ",
             "example.yaml: document 1: ConfigMap leaderboard: data.KAFKA_SASL_MECHANISMS: no "
             "manifest takes it; did you mean KAFKA_SASL_MECHANISM?"),
    Mutation("a setting that no manifest passes on", MINE, "",
             "kind: ConfigMap\nmetadata: {name: leaderboard}\ndata: {BATCH_SIZE: '9'}\n",
             "mine.yaml: document 1: ConfigMap leaderboard: data.BATCH_SIZE: no manifest takes it"),
    Mutation("a setting that is left out", MINE, "",
             "kind: Secret\nmetadata: {name: stores-query}\nstringData: {REDIS_URL: r}\n",
             "Secret stores-query: DATABASE_URL is missing, and no pod that takes it would start"),
    Mutation("a Secret that is misspelt", MINE, "",
             "kind: Secret\nmetadata: {name: stores-onwager}\nstringData: {REDIS_URL: r}\n",
             "no manifest takes anything from Secret stores-onwager; did you mean stores-on"),
    Mutation("a key of a mounted Secret", MINE, "",
             "kind: Secret\nmetadata: {name: kafka-ca}\nstringData: {ca.cert: r}\n",
             "Secret kafka-ca: stringData.ca.cert: no manifest takes it; did you mean ca.crt?"),
    Mutation("a field of a Secret that is none", MINE, "",
             "kind: Secret\nmetadata: {name: kafka-ca}\nstringdata: {ca.crt: r}\n",
             "Secret kafka-ca: unknown field stringdata; did you mean stringData?"),
    Mutation("settings that are no YAML", MINE, "", "kind: {\n",
             "mine.yaml: can't be read as YAML"),
    Mutation("settings of another kind", MINE, "", "kind: Deployment\n",
             "mine.yaml: document 1: is neither a ConfigMap nor a Secret"),
)  # fmt: skip
ALL: Final = (
    *WIRING,
    *BOUNDS,
    *METRICS,
    *FILLED_IN,
    *EVENTING,
    *BUILDING,
    *SCHEMAS,
    *TRIGGERS,
    *POLICIES,
    *SCALING,
    *AGREEMENT,
)
