//! `fist logs`: what the steps printed.

use std::io::IsTerminal;

use super::Outcome;
use crate::{
    args::Logs,
    client::{Client, Request},
    failure::{Code, Failure},
    show,
};

/// Does it.
pub async fn run(client: &Client, asked: &Logs) -> Outcome {
    let request = Request::get(&["api", "v1", "executions", &asked.id, "logs"])
        .query("step", asked.step.as_deref())
        .query("follow", asked.follow.then_some("true"));
    let mut streamed = client.stream(&request).await?;
    let is_terminal = std::io::stdout().is_terminal();
    // A character may come in two pieces.
    let mut rest = Vec::new();
    loop {
        let piece = tokio::select! {
            piece = streamed.next_patiently() => piece,
            _ = tokio::signal::ctrl_c() => return Ok(Code::Detached),
        };
        let piece = piece.map_err(|reason| Failure::no_server(format!("the logs broke off: {reason}")))?;
        let is_end = piece.is_none();
        rest.extend_from_slice(&piece.unwrap_or_default());
        let text = take_text(&mut rest, is_end);
        let text = if is_terminal { show::clean(&text) } else { text };
        if !show::data(&text) || is_end {
            return Ok(Code::Succeeded);
        }
    }
}

/// All whole characters; at the end what is left of one is replaced.
fn take_text(bytes: &mut Vec<u8>, is_end: bool) -> String {
    let keep = match std::str::from_utf8(bytes) {
        // Nothing is wrong but that it ends too soon.
        Err(error) if error.error_len().is_none() && !is_end => error.valid_up_to(),
        _ => bytes.len(),
    };
    let taken: Vec<u8> = bytes.drain(..keep).collect();
    String::from_utf8_lossy(&taken).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_survive_any_cut() {
        let text = "ä€😀x";
        for size in 1..text.len() {
            let mut rest = Vec::new();
            let mut out = String::new();
            for piece in text.as_bytes().chunks(size) {
                rest.extend_from_slice(piece);
                out.push_str(&take_text(&mut rest, false));
            }
            assert_eq!(out, text);
            assert!(rest.is_empty());
        }
        assert_eq!(take_text(&mut vec![0xe2, 0x82], true), "\u{fffd}");
    }
}
