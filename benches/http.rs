//! A token's whole way out: loop, frames, routing, JSON, SSE and the socket, over a decoder that takes no time. Elements are
//! tokens; each stream is read by a client on loopback.

#[path = "../tests/support/gguf_file.rs"]
mod gguf_file;
#[path = "../tests/support/scripted.rs"]
mod scripted;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pocket_llm::http::{self, App, HttpSettings, Lifecycle, Parts};
use pocket_llm::metrics::Metrics;
use pocket_llm::models::memory::{Asked, Kernels};
use pocket_llm::models::{Catalogue, Collection, Library, Model};
use pocket_llm::pool::{Drafts, Placed, Pool, PoolSettings};
use scripted::{Script, options};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const TOKENS: u32 = 500;

fn sse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sse");
    for streams in [1, 8] {
        let runtime = Runtime::new().expect("a runtime");
        let address = runtime.block_on(serve(streams));
        group.throughput(Throughput::Elements(u64::from(streams * TOKENS)));
        group.bench_function(BenchmarkId::from_parameter(streams), |bencher| {
            bencher.iter_custom(|rounds| runtime.block_on(read_all(address, streams, rounds)));
        });
    }
    group.finish();
}

async fn serve(parallel: u32) -> SocketAddr {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let path = folder.join("scripted.gguf");
    gguf_file::write_model(&path, "Scripted");
    let name = "scripted".into();
    let model = Model {
        name,
        path,
        entry: None,
    };
    let pool = Pool::new(PoolSettings {
        engine: options(&Arc::new(Script::silent()), parallel, 0),
        asked: Asked {
            ctx_size: Some(1024 * parallel),
            parallel: Some(parallel),
            ..Asked::default()
        },
        kernels: Kernels::default(),
        memory: None,
        most_loaded: 1,
        keep_alive: None,
        placed: Placed::default(),
        drafts: Drafts::default(),
    });
    let lease = pool.lease(&model, true).await.expect("a model");
    lease.engine().loaded().await;
    let collection = Collection {
        catalogue: Arc::new(Catalogue::builtin().clone()),
        store: None,
    };
    let app = App::new(Parts {
        pool,
        library: Library::new(collection, Some(model), Vec::new()),
        downloads: None,
        metrics: Arc::new(Metrics::new()),
        settings: HttpSettings::default(),
        lifecycle: Lifecycle::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let settings = app.settings().clone();
    tokio::spawn(http::listen::serve(
        vec![listener],
        http::router(app),
        settings,
        std::future::pending(),
    ));
    address
}

async fn read_all(address: SocketAddr, streams: u32, rounds: u64) -> Duration {
    let began = Instant::now();
    for _ in 0..rounds {
        let reading: Vec<_> = (0..streams)
            .map(|_| tokio::spawn(read_one(address)))
            .collect();
        for read in reading {
            read.await.expect("a whole stream");
        }
    }
    began.elapsed()
}

async fn read_one(address: SocketAddr) {
    let body =
        format!(r#"{{"text":"loop:token |","stream":true,"maxTokens":{TOKENS},"temperature":0}}"#);
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "POST /ai/text HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("a request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    assert!(
        answer.windows(10).any(|window| window == b"\"complete\""),
        "the stream was complete"
    );
}

criterion_group!(benches, sse);
criterion_main!(benches);
