import type { DeviceSource } from "@coppice/backend-webgpu";

/** A source whose devices are changed before anyone uses them. */
export function withDevices(source: DeviceSource, change: (device: GPUDevice) => void): DeviceSource {
  return {
    name: source.name,
    async requestAdapter() {
      const adapter = await source.requestAdapter();
      if (!adapter) return null;
      const request = adapter.requestDevice.bind(adapter);
      adapter.requestDevice = async (descriptor?: GPUDeviceDescriptor) => {
        const device = await request(descriptor);
        change(device);
        return device;
      };
      return adapter;
    },
  };
}

/** A source whose devices are seen by the test. */
export function watched(source: DeviceSource) {
  const devices: GPUDevice[] = [];
  /** What is not destroyed yet. */
  const alive = { buffers: 0, devices: 0 };
  const own = withDevices(source, (device) => {
    const create = device.createBuffer.bind(device);
    device.createBuffer = (wanted: GPUBufferDescriptor) => {
      const buffer = create(wanted);
      const destroy = buffer.destroy.bind(buffer);
      alive.buffers++;
      let gone = false;
      buffer.destroy = () => {
        if (!gone) alive.buffers--;
        gone = true;
        destroy();
      };
      return buffer;
    };
    const end = device.destroy.bind(device);
    let ended = false;
    alive.devices++;
    device.destroy = () => {
      if (!ended) alive.devices--;
      ended = true;
      end();
    };
    devices.push(device);
  });
  return { ...own, devices, alive };
}
