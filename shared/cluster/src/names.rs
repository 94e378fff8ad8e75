//! The names by which our objects are known in a cluster. (The definition of the Workflow, which is made in the engine,
//! spells its own.)

/// API group of the Workflow.
pub const GROUP: &str = "punching-fist.io";
/// The version of the Workflow that we write.
pub const VERSION: &str = "v1alpha1";
/// Kind of the Workflow.
pub const KIND: &str = "Workflow";
/// Plural of the Workflow, as it stands in URLs and rules.
pub const PLURAL: &str = "workflows";
/// Who owns the fields that we apply.
pub const FIELD_MANAGER: &str = "punching-fist";

/// Label that every pod of ours has, with the value [`APP`].
pub const APP_LABEL: &str = "app";
/// The value of [`APP_LABEL`].
pub const APP: &str = "punching-fist";
/// Label that tells what a pod of ours is.
pub const COMPONENT_LABEL: &str = "component";
/// The value of [`COMPONENT_LABEL`] for a cli step's pod.
pub const CLI_COMPONENT: &str = "workflow-cli";
/// Label with the execution's id.
pub const EXECUTION_LABEL: &str = "punching-fist.io/execution";
/// Label with the step's name, cut to what a label's value may have; the annotation of the same name is whole.
pub const STEP_LABEL: &str = "punching-fist.io/step";
/// Label with the attempt's number.
pub const ATTEMPT_LABEL: &str = "punching-fist.io/attempt";
