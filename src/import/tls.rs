//! TLS towards a server (`rediss://`), by OpenSSL, as for the server's own clients.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::pin::Pin;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::config::import::Trust;

/// Where Linux distributions and macOS keep the certificates of the public authorities. The OpenSSL
/// that is built in knows none of these files.
const AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub type Secured = SslStream<TcpStream>;

/// Does the handshake with the server that has this name. The error says what is wrong.
pub async fn connect(stream: TcpStream, host: &str, trust: &Trust) -> Result<Secured, String> {
    let plain = |error: ErrorStack| error.to_string();
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(plain)?;
    let of_machine = || AUTHORITIES.iter().map(Path::new).find(|file| file.exists());
    if let Some(file) = trust.authorities.as_deref().or_else(of_machine) {
        let loaded = builder.set_ca_file(file);
        loaded.map_err(|error| format!("{}: {error}", file.display()))?;
    }
    if let (Some(certificate), Some(key)) = (&trust.own_certificate, &trust.own_key) {
        let chain = builder.set_certificate_chain_file(certificate);
        chain.map_err(|error| format!("{}: {error}", certificate.display()))?;
        let of_key = |error: &dyn Display| format!("{}: {error}; a key may not be encrypted", key.display());
        let pem = fs::read(key).map_err(|error| format!("{}: {error}", key.display()))?;
        // OpenSSL would ask the terminal for a pass phrase.
        let own = PKey::private_key_from_pem_callback(&pem, |_| Ok(0)).map_err(|error| of_key(&error))?;
        builder.set_private_key(&own).map_err(|error| of_key(&error))?;
    }
    if trust.insecure {
        builder.set_verify(SslVerifyMode::NONE);
    }
    let mut configuration = builder.build().configure().map_err(plain)?;
    configuration.set_verify_hostname(!trust.insecure);
    let ssl = configuration.into_ssl(host).map_err(plain)?;
    let mut stream = SslStream::new(ssl, stream).map_err(plain)?;
    let connected = Pin::new(&mut stream).connect().await;
    connected.map_err(|error| error.to_string())?;
    Ok(stream)
}
