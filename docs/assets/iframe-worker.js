/* A page that was opened from a folder cannot start a worker, in which the search runs. An iframe
   runs the worker's script in the page instead. */
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement('iframe');
      this.frame.hidden = true;
      document.documentElement.append(this.frame);
      this.scope = this.frame.contentWindow;
      this.scope.postMessage = data =>
        this.dispatchEvent(new MessageEvent('message', { data }));
      this.scope.importScripts = (...urls) =>
        urls.reduce((last, next) => last.then(() => this.load(next)), Promise.resolve());
      this.ready = this.load(url);
    }
    load(url) {
      return new Promise((resolve, reject) => {
        const script = this.scope.document.createElement('script');
        Object.assign(script, { src: url, onload: resolve, onerror: reject });
        this.scope.document.head.append(script);
      });
    }
    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent('message', { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
