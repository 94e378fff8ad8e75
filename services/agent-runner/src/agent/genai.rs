//! The spans of model calls and tool calls, by OpenTelemetry's conventions for generative AI.
//!
//! Invariant: what was asked and answered, and what tools were given and gave, is in no span.

use protocol::turns::ToolCall;
use service::{
    clock,
    metrics::Tokens,
    spans::{Kind, Span, Value},
};

use crate::llm::Answer;

/// Completes the span of one question to a provider's model, attempts that failed included.
pub(super) fn chat(
    span: &mut Span,
    (provider, model): (&str, &str),
    output_tokens_max: u32,
    tokens: Tokens,
    answer: Option<&Answer>,
) {
    span.name = format!("chat {model}");
    span.kind = Kind::Client;
    span.ended = clock::now();
    span.attributes = vec![
        ("gen_ai.operation.name", "chat".into()),
        ("gen_ai.provider.name", provider.into()),
        ("gen_ai.request.model", model.into()),
        ("gen_ai.request.max_tokens", output_tokens_max.into()),
        ("gen_ai.usage.input_tokens", tokens.input.into()),
        ("gen_ai.usage.output_tokens", tokens.output.into()),
        ("gen_ai.usage.cache_read.input_tokens", tokens.cached.into()),
    ];
    if let Some(answer) = answer {
        let reasons = Value::Texts(vec![answer.stop_reason.clone()]);
        span.attributes.push(("gen_ai.response.finish_reasons", reasons));
        if let Some(model) = &answer.model {
            span.attributes
                .push(("gen_ai.response.model", model.as_str().into()));
        }
    }
}

/// Completes the span of one tool call.
pub(super) fn tool(span: &mut Span, call: &ToolCall) {
    span.name = format!("execute_tool {}", call.tool);
    span.ended = clock::now();
    span.attributes = vec![
        ("gen_ai.operation.name", "execute_tool".into()),
        ("gen_ai.tool.name", call.tool.as_str().into()),
        ("gen_ai.tool.call.id", call.id.as_str().into()),
        ("gen_ai.tool.type", "function".into()),
    ];
}
