//! Alerts over HTTP: how many a second are durable and answered with 202.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bus::topology::INGEST;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    Bench,
    bare::context,
    flows::median,
    report::{Row, Target},
    world::{Nats, Running, Sync, config},
};

const GROUP: &str = "Alerts accepted over HTTP (bare: the same bodies published to the stream)";

/// Connections of senders, each with one request at a time.
const CONNECTIONS: usize = 64;

/// The webhook of Alertmanager with so many alerts, of which `number` makes each another.
fn group(number: usize, alerts: usize) -> String {
    let alerts: Vec<_> = (0..alerts)
        .map(|index| {
            json!({
                "status": "firing", "startsAt": "2026-01-01T00:00:00Z", "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://prometheus:9090/graph?g0.expr=up", "fingerprint": format!("{number:012x}{index:04x}"),
                "labels": {
                    "alertname": "KubePodCrashLooping", "severity": "critical", "cluster": "eu-1", "namespace": "payments",
                    "pod": format!("api-{number}-{index}"), "container": "api", "job": "kube-state-metrics",
                },
                "annotations": {
                    "summary": "Pod is restarting 1.05 times / 10 minutes.",
                    "runbook_url": "https://runbooks.example.com/kubepodcrashlooping",
                },
            })
        })
        .collect();
    json!({
        "version": "4", "groupKey": "{}:{alertname=\"KubePodCrashLooping\"}", "truncatedAlerts": 0, "status": "firing",
        "receiver": "punching-fist", "groupLabels": {"alertname": "KubePodCrashLooping"}, "commonLabels": {},
        "commonAnnotations": {}, "externalURL": "http://alertmanager:9093", "alerts": alerts,
    })
    .to_string()
}

/// Posts for `time` over many connections, and gives the requests answered with 202 in a second.
async fn posted(addresses: &[String], alerts: usize, time: Duration) -> f64 {
    let begun = Instant::now();
    let senders = (0..CONNECTIONS).map(|sender| {
        let address = addresses[sender % addresses.len()].clone();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut answer = vec![0; 4096];
            let mut accepted = 0;
            while begun.elapsed() < time {
                let body = group(crate::world::unique(), alerts);
                let request = format!(
                    "POST /webhooks/alertmanager HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(request.as_bytes()).await.unwrap();
                let status = answered(&mut stream, &mut answer).await;
                assert_eq!(status, "202", "{}", String::from_utf8_lossy(&answer));
                accepted += 1;
            }
            accepted
        })
    });
    let mut accepted = 0;
    for sender in senders.collect::<Vec<_>>() {
        accepted += sender.await.unwrap();
    }
    f64::from(accepted) / begun.elapsed().as_secs_f64()
}

/// Reads one answer with a length, and gives its status.
async fn answered(stream: &mut TcpStream, buffer: &mut [u8]) -> String {
    let mut read = 0;
    loop {
        let more = stream.read(&mut buffer[read..]).await.unwrap();
        assert!(more > 0, "the connection was closed");
        read += more;
        let text = String::from_utf8_lossy(&buffer[..read]);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")
                .map(str::to_owned)
        });
        if body.len() >= length.unwrap().parse::<usize>().unwrap() {
            return head.split(' ').nth(1).unwrap().to_owned();
        }
    }
}

/// Publishes the same for `time` from as many senders, and gives the messages acknowledged in a second.
async fn published(nats: &Nats, alerts: usize, time: Duration) -> f64 {
    let js = context(nats).await;
    let begun = Instant::now();
    let senders = (0..CONNECTIONS).map(|_| {
        let js = js.clone();
        tokio::spawn(async move {
            let mut accepted = 0;
            while begun.elapsed() < time {
                let body = group(crate::world::unique(), alerts);
                let sent = js.publish("fist.alerts.alertmanager", body.into()).await.unwrap();
                sent.await.unwrap();
                accepted += 1;
            }
            accepted
        })
    });
    let mut accepted = 0;
    for sender in senders.collect::<Vec<_>>() {
        accepted += sender.await.unwrap();
    }
    f64::from(accepted) / begun.elapsed().as_secs_f64()
}

/// Starts one ingest, and gives its address.
async fn ingest(nats: &Nats) -> (Running, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let running = Running::start("ingest", config(nats, |_| {}), |service| {
        ingest::run_at(service, listener)
    })
    .await;
    (running, address)
}

/// Alerts accepted a second, one at a time and in groups; intake works on them meanwhile.
pub async fn accepted(bench: &mut Bench) {
    for (alerts, target) in [(1, Some(Target::AtLeast(5000.0))), (10, None)] {
        let product_nats = Nats::start(Sync::Default).await;
        let (running, address) = ingest(&product_nats).await;
        let addresses = Arc::new([address]);
        let (mut product, mut bare, mut behind) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.rounds() {
            // Nobody takes these from the stream, which would be full after a few rounds.
            let bare_nats = Nats::start(Sync::Default).await;
            bare.push(published(&bare_nats, alerts, bench.time()).await);
            drop(bare_nats);
            product.push(posted(&*addresses, alerts, bench.time()).await);
            let begun = Instant::now();
            product_nats.settled(&INGEST).await;
            behind.push(begun.elapsed().as_secs_f64());
        }
        running.stop().await;
        let each = alerts as f64;
        let mut row = Row::new(
            GROUP,
            format!("{alerts} in a request, {CONNECTIONS} connections"),
            median(product) * each,
            "alerts/s",
        );
        row.target = target;
        bench.report.add(row.beside(median(bare) * each).noting(format!(
            "all had their disposition {:.2} s after the last answer",
            median(behind)
        )));
    }
}

/// Alerts accepted a second by so many ingests.
pub async fn replicas(bench: &Bench, count: usize) -> f64 {
    let nats = Nats::start(Sync::Default).await;
    let (mut running, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (service, address) = ingest(&nats).await;
        running.push(service);
        addresses.push(address);
    }
    let mut rates = Vec::new();
    for _ in 0..bench.rounds() {
        rates.push(posted(&addresses, 1, bench.time()).await);
        nats.settled(&INGEST).await;
    }
    for service in running {
        service.stop().await;
    }
    median(rates)
}
