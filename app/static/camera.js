// The webcam dialog.

import { make } from "./dom.js";
import { $, notify } from "./page.js";
import { send } from "./server.js";

export function connectCamera() {
  $(".dm-webcam").addEventListener("click", openCamera);
  $(".dm-camera-take").addEventListener("click", takePicture);
  $(".dm-camera-cancel").addEventListener("click", () => $(".dm-camera").close());
}

async function openCamera() {
  const dialog = $(".dm-camera");
  const video = $(".dm-video");
  if (!navigator.mediaDevices?.getUserMedia) {
    notify("This page has no access to a webcam; browsers allow it with https or on localhost only. Choose a picture instead.");
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch {
    notify("The webcam cannot be used: it is missing, busy, or not allowed for this page. Choose a picture instead.");
    return;
  }
  video.srcObject = stream;
  dialog.showModal();
  video.play().catch(() => undefined);
  dialog.addEventListener("close", () => stream.getTracks().forEach((track) => track.stop()), { once: true });
}

function takePicture() {
  const video = $(".dm-video");
  if (!video.videoWidth) return;
  const shot = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  shot.getContext("2d").drawImage(video, 0, 0);
  $(".dm-camera").close();
  shot.toBlob((blob) => send(new File([blob], "webcam.png", { type: "image/png" })), "image/png");
}
