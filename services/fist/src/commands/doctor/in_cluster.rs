//! The part of `fist doctor` that asks a cluster: whether it answers, serves our definition, lets this user do what
//! the configuration needs, and has the accounts that pods are to run as.
//!
//! Invariant: nothing is changed; a review of rights is a question.

use std::{future::Future, time::Duration};

use cluster::{Cluster, names};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};
use service::config::{Config, Executor};

use super::{Checks, Grade};
use crate::args::Doctor;

/// How long one question may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How to make the definition.
const APPLY_DEFINITION: &str = "`fist crd | kubectl apply --server-side -f -` makes it";

/// A thing that somebody may or may not do.
struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    name: String,
    namespace: String,
}

impl Right {
    fn new(verb: &'static str, resource: &'static str, namespace: &str) -> Self {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Self {
            verb,
            group: "",
            resource,
            subresource,
            name: String::new(),
            namespace: namespace.to_owned(),
        }
    }

    /// As kubectl spells the resource.
    fn resource(&self) -> String {
        let mut text = self.resource.to_owned();
        if !self.subresource.is_empty() {
            text = format!("{text}/{}", self.subresource);
        }
        match self.name.as_str() {
            "" => text,
            name => format!("{text} of {name}"),
        }
    }

    fn review(&self) -> SelfSubjectAccessReview {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: some(self.verb),
                    group: some(self.group),
                    resource: some(self.resource),
                    subresource: some(self.subresource),
                    name: some(&self.name),
                    namespace: some(&self.namespace),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        }
    }
}

/// Whether the command line or the configuration mean a cluster at all.
pub(super) fn is_meant(config: &Config, asked: &Doctor) -> bool {
    asked.kubeconfig.is_some()
        || asked.namespace.is_some()
        || config.cli.executor == Executor::Kubernetes
        || config.ingest.watch_workflows
        || config.kubernetes.kubeconfig.is_some()
        || config.tools.kubectl_service_account.is_some()
}

/// Asks it.
pub(super) async fn ask(config: &Config, asked: &Doctor, checks: &mut Checks) {
    service::install_crypto();
    let mut settings = config.kubernetes.clone();
    if let Some(kubeconfig) = &asked.kubeconfig {
        settings.kubeconfig = Some(kubeconfig.clone());
    }
    let mut cluster = match cluster::connect(&settings).await {
        Ok(cluster) => cluster,
        Err(error) => return checks.add(Grade::Fail, "cluster", error.to_string()),
    };
    if let Some(namespace) = &asked.namespace {
        cluster.namespace.clone_from(namespace);
    }
    match answer(cluster.client.apiserver_version()).await {
        Ok(version) => checks.add(
            Grade::Ok,
            "cluster",
            format!("{} is Kubernetes {}", cluster.address, version.git_version),
        ),
        Err(reason) => {
            let text = format!(
                "{} does not answer: {reason}; see that `kubectl version` works",
                cluster.address
            );
            return checks.add(Grade::Fail, "cluster", text);
        }
    }
    let has_definition = definition(&cluster, checks).await;
    if config.cli.executor == Executor::Kubernetes || asked.kubeconfig.is_some() || asked.namespace.is_some()
    {
        pods(config, &cluster, checks).await;
    }
    if has_definition {
        objects(config, &cluster, checks).await;
    }
    if let Some(account) = &config.tools.kubectl_service_account {
        investigator(account, &cluster, checks).await;
    }
}

/// Within a bound, and the reason in one line.
async fn answer<T>(question: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_MAX, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(format!("{} ({})", status.message, status.code)),
        Ok(Err(error)) => Err(cluster::reason(&error)),
        Err(_) => Err(format!("no answer within {} s", ANSWER_MAX.as_secs())),
    }
}

/// Whether our version of the Workflow is served.
async fn definition(cluster: &Cluster, checks: &mut Checks) -> bool {
    let groups = match answer(cluster.client.list_api_groups()).await {
        Ok(list) => list.groups,
        Err(reason) => {
            checks.add(
                Grade::Fail,
                "definition",
                format!("which APIs there are cannot be read: {reason}"),
            );
            return false;
        }
    };
    let name = format!("{}.{}", names::PLURAL, names::GROUP);
    let Some(group) = groups.into_iter().find(|group| group.name == names::GROUP) else {
        checks.add(
            Grade::Warn,
            "definition",
            format!("{name} is not there, so `kubectl apply` knows no Workflow: {APPLY_DEFINITION}"),
        );
        return false;
    };
    let served: Vec<String> = group
        .versions
        .into_iter()
        .map(|version| version.version)
        .collect();
    let is_ours = served.iter().any(|version| version == names::VERSION);
    let served = served.join(", ");
    match is_ours {
        true => checks.add(Grade::Ok, "definition", format!("{name} serves {served}")),
        false => checks.add(
            Grade::Fail,
            "definition",
            format!(
                "{name} serves {served}, and this fist writes {}: {APPLY_DEFINITION}",
                names::VERSION
            ),
        ),
    }
    is_ours
}

/// Steps as pods: the rights of who runs them, and the accounts that they run as.
async fn pods(config: &Config, cluster: &Cluster, checks: &mut Checks) {
    let namespace = config.cli.pod_namespace.as_deref().unwrap_or(&cluster.namespace);
    let mut rights: Vec<Right> = ["create", "delete", "get", "list", "watch"]
        .into_iter()
        .map(|verb| Right::new(verb, "pods", namespace))
        .collect();
    rights.push(Right::new("get", "pods/log", namespace));
    let what = format!("run steps as pods in the namespace {namespace}");
    self::rights(cluster, &rights, Grade::Fail, &what, checks).await;
    for (key, account) in [
        ("cli.pod_service_account", &config.cli.pod_service_account),
        ("cli.pod_fix_service_account", &config.cli.pod_fix_service_account),
    ] {
        if account == "none" {
            checks.add(
                Grade::Ok,
                "accounts",
                format!("{key} is none: no token is mounted"),
            );
        } else {
            let otherwise = format!(", or set {key} to none, and no token is mounted");
            self::account(key, account, namespace, &otherwise, cluster, checks).await;
        }
    }
}

/// Workflow objects, which somebody may want to be run.
async fn objects(config: &Config, cluster: &Cluster, checks: &mut Checks) {
    let missing = match config.ingest.watch_workflows {
        true => Grade::Fail,
        false => Grade::Warn,
    };
    // No namespace stands for all of them, here as in a review.
    let everywhere = [String::new()];
    let namespaces = match config.ingest.watch_namespaces.as_slice() {
        [] => everywhere.as_slice(),
        named => named,
    };
    for namespace in namespaces {
        let of_group = |verb, resource| Right {
            group: names::GROUP,
            ..Right::new(verb, resource, namespace)
        };
        let rights = [
            of_group("list", "workflows"),
            of_group("watch", "workflows"),
            of_group("patch", "workflows/status"),
        ];
        let what = match namespace.as_str() {
            "" => "run Workflow objects of all namespaces".to_owned(),
            namespace => format!("run Workflow objects of the namespace {namespace}"),
        };
        self::rights(cluster, &rights, missing, &what, checks).await;
    }
}

async fn investigator(account: &str, cluster: &Cluster, checks: &mut Checks) {
    let namespace = &cluster.namespace;
    let right = Right {
        name: account.to_owned(),
        ..Right::new("create", "serviceaccounts/token", namespace)
    };
    let what = format!("let the agents' kubectl run as {account}");
    rights(cluster, &[right], Grade::Fail, &what, checks).await;
    let key = "tools.kubectl_service_account";
    self::account(key, account, namespace, "", cluster, checks).await;
}

/// One line for what these rights are for.
async fn rights(cluster: &Cluster, rights: &[Right], missing: Grade, what: &str, checks: &mut Checks) {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let mut lacking = Vec::new();
    for right in rights {
        let review = right.review();
        let post = PostParams::default();
        match answer(reviews.create(&post, &review)).await {
            Ok(review) if review.status.as_ref().is_some_and(|status| status.allowed) => {}
            Ok(_) => lacking.push(format!("{} {}", right.verb, right.resource())),
            Err(reason) => {
                let text = format!("whether you may {what} cannot be told: {reason}");
                return checks.add(Grade::Warn, "rights", text);
            }
        }
    }
    match lacking.is_empty() {
        true => checks.add(Grade::Ok, "rights", format!("you may {what}")),
        false => checks.add(
            missing,
            "rights",
            format!(
                "you may not {what}: a Role must grant {}; docs/kubernetes.md has the table",
                lacking.join(", ")
            ),
        ),
    }
}

async fn account(
    key: &str,
    account: &str,
    namespace: &str,
    otherwise: &str,
    cluster: &Cluster,
    checks: &mut Checks,
) {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    match answer(accounts.get_metadata_opt(account)).await {
        Ok(Some(_)) => checks.add(
            Grade::Ok,
            "accounts",
            format!("{namespace}/{account} is there ({key})"),
        ),
        Ok(None) => checks.add(
            Grade::Fail,
            "accounts",
            format!(
                "{namespace}/{account} is not there ({key}): `kubectl -n {namespace} create serviceaccount \
                 {account}`{otherwise}"
            ),
        ),
        Err(reason) => checks.add(
            Grade::Warn,
            "accounts",
            format!("whether {namespace}/{account} is there ({key}) cannot be told: {reason}"),
        ),
    }
}
