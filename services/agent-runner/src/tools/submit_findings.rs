//! How an agent ends. Not a tool that is called: the loop takes its arguments as the result.

use serde_json::{Value, json};

use super::schema;
use crate::llm::{MALFORMED, ToolSpec};

/// By what name the model calls it.
pub const NAME: &str = "submit_findings";

/// The ending as a model sees it.
pub fn spec() -> ToolSpec {
    ToolSpec {
        name: NAME.to_owned(),
        description: "Ends the investigation with its result. Call it once, alone, when you know enough or can find out \
                      no more. Every claim needs evidence: the id of a tool call and an exact quote from its result."
            .to_owned(),
        schema: arguments_schema(),
    }
}

fn arguments_schema() -> Value {
    let texts = |description: &str| json!({"type": "array", "description": description, "maxItems": 100, "items": {"type": ["string", "object"]}});
    let text = |description: &str| json!({"type": ["string", "null"], "description": description});
    json!({
        "type": "object",
        "required": ["summary"],
        "properties": {
            "summary": {
                "type": "string", "minLength": 1, "maxLength": 20000,
                "description": "What happened and what follows, in a few sentences for the person on call",
            },
            "findings": texts("What you found out, one fact an item"),
            "ruled_out": texts("What you looked at and found not to be the cause, with the reason"),
            "root_cause": text("The cause, as far as it is known; null where it is not"),
            "confidence": {
                "type": ["number", "null"], "minimum": 0, "maximum": 1,
                "description": "How sure you are of the root cause, from 0 to 1",
            },
            "recommendations": texts("What a person should do, most important first"),
            "can_auto_fix": {
                "type": ["boolean", "null"],
                "description": "Whether fix_command would safely solve it without a person; false when in doubt",
            },
            "fix_command": text(
                "One kubectl command that would solve it, such as `kubectl rollout restart deployment/web -n prod`; \
                 null where there is none. It is not run by you; a policy decides."
            ),
            "escalation_notes": text("What a person who takes over must know; null where nothing"),
            "status": {
                "type": ["string", "null"], "enum": ["complete", "inconclusive", null],
                "description": "inconclusive where the tools could not answer the question",
            },
            "evidence": {
                "type": "array", "maxItems": 100,
                "description": "What the findings rest on",
                "items": {
                    "type": "object", "required": ["call_id", "quote"],
                    "properties": {
                        "call_id": {"type": "string", "maxLength": 200, "description": "The id of the tool call"},
                        "quote": {
                            "type": "string", "minLength": 1, "maxLength": 4000,
                            "description": "Copied exactly from that call's result, in one piece",
                        },
                    },
                },
            },
        },
    })
}

/// Everything that keeps `arguments` from being findings, in words that a model can act on.
pub fn problems(arguments: &Value) -> Vec<String> {
    if arguments.get(MALFORMED).is_some() {
        return vec!["the arguments were not one complete JSON object".to_owned()];
    }
    schema::problems(&arguments_schema(), arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_need_a_summary_and_well_formed_evidence() {
        schema::assert_known(&arguments_schema());
        assert_eq!(
            problems(&json!({"summary": "x", "confidence": 0.5, "root_cause": null})),
            Vec::<String>::new()
        );
        assert_eq!(
            problems(&json!({"confidence": 80, "evidence": [{"quote": ""}]})),
            [
                "`summary` is missing",
                "confidence must be between 0 and 1",
                "`call_id` is missing",
                "evidence[0].quote must not be empty",
            ]
        );
        assert_eq!(problems(&json!({MALFORMED: "{"})).len(), 1);
    }
}
