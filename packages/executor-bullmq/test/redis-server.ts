import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";

const found = spawnSync("redis-server", ["--version"]).status === 0;
if (!found && process.env["COPPICE_REQUIRE_REDIS"] === "1") {
  throw new Error("redis-server was not found, and COPPICE_REQUIRE_REDIS is 1");
}
/** Tests with Redis are skipped where there is no `redis-server`, unless COPPICE_REQUIRE_REDIS is 1. */
export const hasRedis = found;

/** A redis-server of the test's own on a free loopback port. */
export class RedisServer {
  readonly folder = mkdtempSync(join(tmpdir(), "coppice-redis-"));
  readonly port: number;
  #process: ChildProcess | undefined;
  #gone: Promise<unknown> = Promise.resolve();

  private constructor(port: number) {
    this.port = port;
  }

  static async start(): Promise<RedisServer> {
    const server = new RedisServer(await freePort());
    await server.start();
    return server;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  /** Keeps nothing on disk, so a restart is also a flush. */
  async start(): Promise<void> {
    const args = ["--port", `${this.port}`, "--bind", "127.0.0.1", "--dir", this.folder, "--save", ""];
    const child = spawn("redis-server", args, { stdio: "ignore" });
    this.#process = child;
    this.#gone = new Promise((resolve) => child.once("exit", resolve));
    const client = this.client();
    await client.ping();
    client.disconnect();
  }

  async stop(): Promise<void> {
    this.#process?.kill("SIGKILL");
    await this.#gone;
  }

  client(): Redis {
    const client = new Redis(this.url, { maxRetriesPerRequest: null, retryStrategy: () => 50 });
    client.on("error", () => {});
    return client;
  }

  async end(): Promise<void> {
    await this.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}
