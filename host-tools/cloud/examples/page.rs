//! The page with two plants that are made up, through a real broker: to work on the page without
//! a plant. `cargo run -p helio-cloud --example page`

#[path = "../tests/common/plant.rs"]
mod plant;

use std::time::Duration;

use helio_bridge::broker::Broker;
use helio_bridge::mqtt::{Backoff, Endpoint};
use helio_bridge::pki::{Demo, Files};
use helio_cloud::page::Page;
use helio_cloud::subscriber::{self, Shared};
use plant::{Control, Plant};
use tokio::sync::watch;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    Demo::new()?.write(dir.path())?;
    let serving = Files::of(dir.path(), "broker").load()?;
    let broker = Broker::bind(([127, 0, 0, 1], 0).into(), &serving).await?;
    let port = broker.local_addr()?.port();
    tokio::spawn(broker.run());

    let endpoint = |party| -> anyhow::Result<Endpoint> {
        Ok(Endpoint {
            host: "localhost".into(),
            port,
            tls: Files::of(dir.path(), party).load()?.client()?,
            backoff: Backoff::default(),
        })
    };
    for master in ["rack-1", "rack-2"] {
        let config = helio_bridge::Config {
            site: "demo".into(),
            master: master.into(),
            broker: endpoint("bridge")?,
            keep: 20_000,
            poll: Duration::from_millis(20),
        };
        let (tell, _) = watch::channel(helio_bridge::Health::default());
        tokio::spawn(helio_bridge::run(
            config,
            Plant::new(master, Control::default()),
            tell,
        ));
    }
    let store = Shared::new("demo");
    let (viewer, filled) = (endpoint("viewer")?, store.clone());
    tokio::spawn(async move { subscriber::run("demo", "viewer", &viewer, filled).await });
    let page = Page::bind(([127, 0, 0, 1], 8080).into(), store).await?;
    println!("http://{}/", page.local_addr()?);
    page.run().await
}
