import { CoppiceError } from "@coppice/core";

/** Where a queue is. */
export interface RedisAddress {
  /** `redis://[user:password@]host[:port][/database]`, `rediss://` for TLS. */
  readonly url: string;
  /** The same without user and password, for messages. */
  readonly shown: string;
}

/** @throws COPPICE_USAGE */
export function parseRedisAddress(text: string): RedisAddress {
  let url: URL | undefined;
  try {
    url = new URL(text);
  } catch {
    // Reported below, without the text: it may hold a password.
  }
  if (!url || !/^rediss?:$/.test(url.protocol) || url.hostname === "" || !/^\/?\d*$/.test(url.pathname)) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      "the address of the queue is not usable, expected redis://host:port or rediss://user:password@host:port/0",
    );
  }
  return { url: text, shown: `${url.protocol}//${url.host}${url.pathname}` };
}

/** @throws COPPICE_USAGE */
export function checkQueueName(name: string): string {
  if (/^[\w.-]{1,100}$/.test(name)) return name;
  throw new CoppiceError(
    "COPPICE_USAGE",
    `the queue is named ${JSON.stringify(name)}, expected up to 100 letters, digits, dots, dashes and underscores`,
  );
}
