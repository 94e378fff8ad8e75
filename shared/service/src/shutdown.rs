//! The end of a process: the first signal asks, the second insists.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::fatal::Fatal;

/// Exit code after a second signal, as shells have it for an interrupt.
pub const EXIT_INTERRUPTED: i32 = 130;

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at
/// once: whoever sends it has waited long enough, and nothing is lost, since
/// unacknowledged work is delivered again.
///
/// # Errors
/// If the system refuses to let signals be heard.
pub fn on_signals() -> Result<CancellationToken, Fatal> {
    let listen = |kind| signal(kind).map_err(|error| Fatal::because("cannot listen for signals", error));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        either(&mut term, &mut int).await;
        tracing::info!("asked to end; finishing what is in hand (a second signal ends at once)");
        first.cancel();
        either(&mut term, &mut int).await;
        tracing::warn!("ended by a second signal");
        std::process::exit(EXIT_INTERRUPTED);
    });
    Ok(token)
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
