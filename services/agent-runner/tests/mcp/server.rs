//! MCP servers to be tested against: an honest one by the official SDK, and liars that write lines by hand.

use std::{
    io::{BufRead, Write},
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ListToolsResult,
        PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
    },
    service::{RequestContext, ServiceExt},
};
use serde_json::{Value, json};
use tokio::process::Command;

/// A server that does what its tools say.
#[derive(Clone, Default)]
pub struct Honest {
    /// Whether it has no `say` any more.
    forgotten: Arc<AtomicBool>,
}

fn tool(name: &'static str, description: &'static str, schema: Value) -> Tool {
    Tool::new(name, description, schema.as_object().unwrap().clone())
}

fn tools(page: usize) -> Vec<Tool> {
    let none = || json!({"type": "object", "properties": {}});
    match page {
        0 => vec![
            tool(
                "say",
                "Says what it is told. password=hunter2",
                json!({
                    "type": "object", "required": ["text"], "additionalProperties": false,
                    "properties": {"text": {"type": "string", "maxLength": 1000}, "mood": {"$ref": "#/$defs/mood"}},
                    "$defs": {"mood": {"enum": ["glad", "sad"]}},
                }),
            ),
            tool("environment", "Its environment.", none()),
            tool("write.file", "Changes things.", none()),
        ],
        _ => vec![
            tool("show.picture", "A picture.", none()),
            tool("fail", "Fails.", none()),
            tool("hang", "Takes for ever.", none()),
            tool("huge", "Gives five mebibytes.", none()),
            tool("exit", "Ends the server.", none()),
            tool("forget", "Takes `say` away.", none()),
            tool("child", "Starts a process.", none()),
            tool("pid", "Its process.", none()),
            tool(
                "large.schema",
                "Has one.",
                json!({"type": "object", "description": "x".repeat(20_000)}),
            ),
        ],
    }
}

impl ServerHandler for Honest {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let is_second = request.is_some_and(|request| request.cursor.is_some());
        let mut page = ListToolsResult::with_all_items(tools(usize::from(is_second)));
        page.next_cursor = (!is_second).then(|| "second".to_owned());
        Ok(page)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let text = |text: String| Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into());
        match &*request.name {
            "say" if !self.forgotten.load(Ordering::Relaxed) => {
                let arguments = request.arguments.unwrap_or_default();
                text(arguments["text"].as_str().unwrap_or_default().to_owned())
            }
            "environment" => {
                let mut names: Vec<String> = std::env::vars()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                names.sort();
                text(names.join("\n"))
            }
            "show.picture" => Ok(CallToolResult::success(vec![
                ContentBlock::text("Here it is:"),
                ContentBlock::image("AAAAAAAA", "image/png"),
            ])
            .into()),
            "fail" => Ok(CallToolResult::error(vec![ContentBlock::text("there is no such ticket")]).into()),
            "hang" => std::future::pending().await,
            "huge" => text("x".repeat(5 * 1024 * 1024)),
            "exit" => {
                eprintln!("out of luck, password=hunter2");
                exit(3)
            }
            "forget" => {
                self.forgotten.store(true, Ordering::Relaxed);
                let _ = context.peer.notify_tool_list_changed().await;
                text("done".to_owned())
            }
            "child" => {
                let child = Command::new("sleep").arg("1000").spawn().unwrap();
                text(child.id().unwrap().to_string())
            }
            "pid" => text(std::process::id().to_string()),
            other => Err(ErrorData::invalid_params(format!("no tool {other}"), None)),
        }
    }
}

/// Serves over stdin and stdout as the way `how` says.
pub async fn serve(how: &str) {
    match how {
        "honest" => {
            let running = Honest::default().serve(rmcp::transport::stdio()).await.unwrap();
            running.waiting().await.unwrap();
        }
        // Neither speaks nor goes: not for a closed stdin, and not for SIGTERM.
        "stubborn" => {
            let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            loop {
                term.recv().await;
            }
        }
        "gone" => {
            eprintln!("there is no licence");
            exit(4)
        }
        "endless-line" => {
            let mut stdout = std::io::stdout().lock();
            while stdout.write_all(&[b'x'; 65_536]).is_ok() {}
        }
        // Speaks another language first, which clients pass over, and then lies.
        _ => {
            println!("Starting up...");
            answer(|method| match (how, method) {
                ("handshake-only", "server/discover") => exit(5),
                ("discovery-only", "initialize") => None,
                ("discovery-only", "server/discover") => Some(json!({
                    "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                    "ttlMs": 0, "cacheScope": "private",
                })),
                ("discovery-only" | "handshake-only", "tools/call") => {
                    Some(json!({"content": [{"type": "text", "text": format!("by {how}")}]}))
                }
                ("old-version", "initialize") => Some(json!({
                    "protocolVersion": "1999-01-01", "capabilities": {"tools": {}},
                    "serverInfo": {"name": "liar", "version": "1"},
                })),
                (_, "initialize") => Some(json!({
                    "protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                    "serverInfo": {"name": "liar", "version": "1"},
                })),
                ("endless-list", "tools/list") => Some(json!({
                    "tools": [{"name": "other", "inputSchema": {"type": "object"}}], "nextCursor": "more",
                })),
                ("no-list", "tools/list") => Some(json!({"tools": "none of your business"})),
                (_, "tools/list") => {
                    Some(json!({"tools": [{"name": "say", "inputSchema": {"type": "object"}}]}))
                }
                ("asks-back", "tools/call") => {
                    Some(json!({"resultType": "input_required", "requestState": "x"}))
                }
                ("nonsense", "tools/call") => Some(json!({"weather": "fine"})),
                _ => None,
            });
        }
    }
}

/// Answers each request by its method; those that `result` has nothing for with an error.
fn answer(result: impl Fn(&str) -> Option<Value>) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        let (Some(id), Some(method)) = (request.get("id"), request["method"].as_str()) else {
            continue;
        };
        let answer = match result(method) {
            Some(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            None => {
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no such method"}})
            }
        };
        println!("{answer}");
    }
}
