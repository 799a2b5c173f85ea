//! TLS for clients, by OpenSSL, which the Kafka client brings along. So ciphers and protocols are
//! written as in Redis (docs/decisions/tls.md).

use std::ffi::{c_long, c_void};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use openssl::dh::Dh;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{
    AlpnError, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode,
    SslStream as SyncStream, SslVerifyMode, select_next_proto,
};
use openssl::x509::{X509Name, X509VerifyResult};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::config::tls::{AuthClients, Identity, TlsSettings};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What gRPC clients and HTTP clients ask for (RFC 7301). Redis clients ask for nothing.
pub const HTTP2: &[u8] = b"\x02h2";
pub const HTTP1: &[u8] = b"\x08http/1.1";
const PROTOCOLS: [(&str, SslOptions); 4] = [
    ("TLSv1", SslOptions::NO_TLSV1),
    ("TLSv1.1", SslOptions::NO_TLSV1_1),
    ("TLSv1.2", SslOptions::NO_TLSV1_2),
    ("TLSv1.3", SslOptions::NO_TLSV1_3),
];
const DEFAULT_PROTOCOLS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];

/// What a listener needs to speak TLS. It can be replaced while the server runs: connections that
/// are open stay as they are.
pub struct Tls {
    context: ArcSwap<SslContext>,
    /// What clients may ask for: [`HTTP2`] or [`HTTP1`].
    protocol: &'static [u8],
}

impl Tls {
    /// Reads the certificate and the other files. The error says what is wrong.
    pub fn new(settings: &TlsSettings, protocol: &'static [u8]) -> Result<Arc<Tls>, String> {
        let context = ArcSwap::from_pointee(context(settings, protocol)?);
        Ok(Arc::new(Tls { context, protocol }))
    }

    /// Reads the files for these settings. They are in force once the result is called.
    pub fn prepare(self: &Arc<Tls>, settings: &TlsSettings) -> Result<impl FnOnce() + use<>, String> {
        let (tls, context) = (self.clone(), context(settings, self.protocol)?);
        Ok(move || tls.context.store(Arc::new(context)))
    }

    /// Does the handshake with a client.
    pub async fn accept(&self, stream: TcpStream) -> Result<SslStream<TcpStream>, String> {
        let ssl = Ssl::new(&self.context.load()).map_err(|error| error.to_string())?;
        let mut stream = SslStream::new(ssl, stream).map_err(|error| error.to_string())?;
        match tokio::time::timeout(HANDSHAKE, Pin::new(&mut stream).accept()).await {
            Ok(Ok(())) => Ok(stream),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it took more than {} s", HANDSHAKE.as_secs())),
        }
    }
}

/// The common name in the certificate that a client has shown. `None` if there is none, or if
/// nobody has checked it.
pub fn common_name(client: &SslRef) -> Option<String> {
    let certificate = client.peer_certificate()?;
    if client.verify_result() != X509VerifyResult::OK {
        return None;
    }
    let name = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).next()?;
    name.data().to_string().ok()
}

/// A connection of this machine to its own server, with the client's certificate, or else with the
/// server's. It does not check who answers.
pub fn as_client(
    settings: &TlsSettings,
    stream: std::net::TcpStream,
) -> Result<SyncStream<std::net::TcpStream>, String> {
    let plain = |error: ErrorStack| error.to_string();
    let mut builder = SslContext::builder(SslMethod::tls_client()).map_err(plain)?;
    let own = match settings.client.cert_file {
        Some(_) => ("tls-client-", &settings.client),
        None => ("tls-", &settings.server),
    };
    use_certificate(&mut builder, own)?;
    let ssl = Ssl::new(&builder.build()).map_err(plain)?;
    ssl.connect(stream)
        .map_err(|error| format!("reach the server over TLS: {error}"))
}

fn context(settings: &TlsSettings, protocol: &'static [u8]) -> Result<SslContext, String> {
    let plain = |error: ErrorStack| error.to_string();
    let mut builder = SslContext::builder(SslMethod::tls_server()).map_err(plain)?;
    // Without these, a write that would block had to be repeated with the same buffer.
    builder.set_mode(
        SslMode::ENABLE_PARTIAL_WRITE
            | SslMode::ACCEPT_MOVING_WRITE_BUFFER
            | SslMode::AUTO_RETRY
            | SslMode::RELEASE_BUFFERS,
    );
    builder.set_options(protocols(&settings.protocols)? | SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION);
    if settings.prefer_server_ciphers {
        builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE);
    }
    use_certificate(&mut builder, ("tls-", &settings.server))?;
    authenticate_clients(&mut builder, settings)?;
    if let Some(ciphers) = &settings.ciphers {
        let set = builder.set_cipher_list(ciphers);
        set.map_err(|error| format!("tls-ciphers {ciphers}: {error}"))?;
    }
    if let Some(ciphers) = &settings.ciphersuites {
        let set = builder.set_ciphersuites(ciphers);
        set.map_err(|error| format!("tls-ciphersuites {ciphers}: {error}"))?;
    }
    if let Some(file) = &settings.dh_params_file {
        let params = Dh::params_from_pem(&read("tls-dh-params-file", file)?);
        params
            .and_then(|params| builder.set_tmp_dh(&params))
            .map_err(|error| of_file("tls-dh-params-file", file, &error))?;
    }
    remember_sessions(&mut builder, settings).map_err(plain)?;
    builder.set_alpn_select_callback(move |_, offered| select_next_proto(protocol, offered).ok_or(AlpnError::NOACK));
    Ok(builder.build())
}

/// `prefix`: how the names of these settings begin.
fn use_certificate(builder: &mut SslContextBuilder, (prefix, own): (&str, &Identity)) -> Result<(), String> {
    let (of_cert, of_key) = (format!("{prefix}cert-file"), format!("{prefix}key-file"));
    let (Some(cert), Some(key)) = (&own.cert_file, &own.key_file) else {
        return Err(format!("{of_cert} and {of_key} must be given"));
    };
    check_file(&of_cert, cert)?;
    builder
        .set_certificate_chain_file(cert)
        .map_err(|error| of_file(&of_cert, cert, &error))?;
    let pem = read(&of_key, key)?;
    let parsed = match &own.key_file_pass {
        Some(pass) => PKey::private_key_from_pem_passphrase(&pem, pass.as_bytes()),
        // Without a passphrase OpenSSL would ask for one on the terminal.
        None => PKey::private_key_from_pem_callback(&pem, |_| Ok(0)),
    };
    let parsed = parsed.map_err(|error| of_file(&of_key, key, &error))?;
    builder
        .set_private_key(&parsed)
        .and_then(|()| builder.check_private_key())
        .map_err(|error| of_file(&of_key, key, &error))
}

fn authenticate_clients(builder: &mut SslContextBuilder, settings: &TlsSettings) -> Result<(), String> {
    let (file, directory) = (&settings.ca_cert_file, &settings.ca_cert_dir);
    if let Some(file) = file {
        check_file("tls-ca-cert-file", file)?;
    }
    if file.is_some() || directory.is_some() {
        builder
            .load_verify_locations(file.as_deref(), directory.as_deref())
            .map_err(|error| format!("tls-ca-cert-file, tls-ca-cert-dir: {error}"))?;
    } else if settings.auth_clients != AuthClients::No {
        return Err("tls-auth-clients needs tls-ca-cert-file or tls-ca-cert-dir; without them set it to no".into());
    }
    if let Some(file) = file {
        let names = X509Name::load_client_ca_file(file);
        builder.set_client_ca_list(names.map_err(|error| of_file("tls-ca-cert-file", file, &error))?);
    }
    builder.set_verify(match settings.auth_clients {
        AuthClients::No => SslVerifyMode::NONE,
        AuthClients::Optional => SslVerifyMode::PEER,
        AuthClients::Yes => SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
    });
    Ok(())
}

fn remember_sessions(builder: &mut SslContextBuilder, settings: &TlsSettings) -> Result<(), ErrorStack> {
    if !settings.session_caching {
        builder.set_session_cache_mode(SslSessionCacheMode::OFF);
        builder.set_options(SslOptions::NO_TICKET);
        return Ok(());
    }
    builder.set_session_cache_mode(SslSessionCacheMode::SERVER);
    builder.set_session_cache_size(i32::try_from(settings.session_cache_size).unwrap_or(i32::MAX));
    // SAFETY: plain call of OpenSSL with a context that this function has for itself.
    unsafe { SSL_CTX_set_timeout(builder.as_ptr().cast(), settings.session_cache_timeout.into()) };
    // Needed where clients have certificates.
    builder.set_session_id_context(b"highwater")
}

unsafe extern "C" {
    /// How long sessions of a context can be resumed. The crate `openssl` does not have it.
    fn SSL_CTX_set_timeout(context: *mut c_void, seconds: c_long) -> c_long;
}

/// The options that forbid what is not among these.
fn protocols(wanted: &[String]) -> Result<SslOptions, String> {
    let is_known = |name: &&String| PROTOCOLS.iter().any(|(known, _)| name.eq_ignore_ascii_case(known));
    if wanted.iter().any(|name| !is_known(&name)) {
        return Err(
            "Invalid tls-protocols specified. Use a combination of 'TLSv1', 'TLSv1.1', 'TLSv1.2' and 'TLSv1.3'.".into(),
        );
    }
    let is_wanted = |name: &str| match wanted.is_empty() {
        true => DEFAULT_PROTOCOLS.contains(&name),
        false => wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(name)),
    };
    let forbidden = PROTOCOLS.iter().filter(|(name, _)| !is_wanted(name));
    Ok(forbidden.fold(SslOptions::NO_SSLV3, |all, (_, option)| all | *option))
}

fn read(setting: &str, file: &Path) -> Result<Vec<u8>, String> {
    check_file(setting, file)?;
    std::fs::read(file).map_err(|error| format!("{setting} {}: {error}", file.display()))
}

/// A device or a pipe could keep its reader for ever.
fn check_file(setting: &str, file: &Path) -> Result<(), String> {
    let wrong = |reason: String| format!("{setting} {}: {reason}", file.display());
    let kind = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?;
    match kind.is_file() {
        true => Ok(()),
        false => Err(wrong("is no file".to_owned())),
    }
}

fn of_file(setting: &str, file: &Path, error: &ErrorStack) -> String {
    format!("{setting} {}: {error}", file.display())
}
