actors::settings! {
    /// How the HTTP front listens and what it lets through.
    pub struct IngressSettings, IngressFlags in "ingress" {
        /// Address to listen on.
        value host: String = "127.0.0.1".to_owned();
        /// Port to listen on; 0 picks one.
        value port: u16 = 8000;
        /// Threads that serve HTTP connections; 0 takes half of the cores.
        value http_workers: usize = 0;
        /// Key that clients must send as bearer token; may be repeated. With none, everybody may ask.
        list api_key: String;
        /// File with one API key a line, or a name and a key (names show in figures); # begins a comment line.
        optional api_key_file: std::path::PathBuf;
        /// PEM file with the certificate chain; turns on TLS.
        optional tls_cert: std::path::PathBuf;
        /// PEM file with the private key of the certificate.
        optional tls_key: std::path::PathBuf;
        /// Origin whose pages may call this server, or * for all; may be repeated.
        list cors_origin: String;
        /// Largest request body in bytes.
        value max_body_bytes: usize = 8_388_608;
        /// Seconds within which a request body must arrive.
        value body_timeout: u64 = 30;
        /// Fixes the seeds drawn for requests that name none; for repeatable runs of one ingress.
        optional random_seed: u64;
        /// Generating requests served at once; more are answered 429.
        value max_concurrent_requests: usize = 4096;
        /// Highest priority that a request may ask for; 0: nobody goes before others.
        value max_priority: i32 = 100;
        /// Seconds that a request waits for an instance of a known model.
        value hold_when_empty: u64 = 30;
        /// Bytes that may wait for one slow client.
        value stream_backlog_bytes: usize = 4_194_304;
        /// Bytes that may wait for all slow clients together.
        value total_backlog_bytes: usize = 268_435_456;
        /// Do not answer /metrics on this port, only on the admin listener.
        switch no_public_metrics;
    }
}
