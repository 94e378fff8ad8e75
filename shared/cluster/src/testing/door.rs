//! A door between a client and a server that the test can shut: nobody gets through, and who was inside is
//! thrown out.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A door before one server.
pub struct Door {
    port: u16,
    server: (String, u16),
    standing: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Door {
    /// An open one, at a free port of 127.0.0.1.
    pub async fn open(host: String, port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap_or_else(|error| panic!("a free port: {error}"));
        let address = listener.local_addr().unwrap_or_else(|error| panic!("{error}"));
        let door = Self {
            port: address.port(),
            server: (host, port),
            standing: Arc::default(),
        };
        door.stand(listener);
        door
    }

    /// Where clients knock.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Refuses whoever comes, and ends every connection there is.
    pub async fn shut(&self) {
        let standing = self
            .standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(standing) = standing {
            standing.abort();
            let _ = standing.await;
        }
    }

    /// Lets them in again.
    pub async fn open_again(&self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port))
            .await
            .unwrap_or_else(|error| panic!("port {}: {error}", self.port));
        self.stand(listener);
    }

    fn stand(&self, listener: TcpListener) {
        let server = self.server.clone();
        let standing = tokio::spawn(async move {
            // Dropped with this task, and every connection with it.
            let mut inside = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let server = server.clone();
                inside.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
                while inside.try_join_next().is_some() {}
            }
        });
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Some(standing);
    }
}
