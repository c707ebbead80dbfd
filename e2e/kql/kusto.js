// Analyses queries with Microsoft's Kusto language service, until stdin ends.
// Each line of stdin is a JSON document, {"tables": {name: "(column:type, ...)"},
// "queries": [text]}, and is answered by a line on stdout: for each query its
// diagnostics and its syntax tree, as far as an evaluator needs it.
'use strict';

const fs = require('fs');
const path = require('path');
const readline = require('readline');
const vm = require('vm');

// The service is made to be a browser script, and sets globals.
const folder = path.dirname(require.resolve('@kusto/language-service-next/package.json'));
for (const file of ['bridge.min.js', 'Kusto.Language.Bridge.min.js']) {
  vm.runInThisContext(fs.readFileSync(path.join(folder, file), 'utf8'), { filename: file });
}
const { Symbols, GlobalState, KustoCode } = globalThis.Kusto.Language;
const { SyntaxKind } = globalThis.Kusto.Language.Syntax;

const list = (items) => Array.from({ length: items ? items.Count : 0 }, (_, i) => items.getItem(i));

const kinds = new Map(Object.entries(SyntaxKind).filter(([, v]) => typeof v === 'number').map(([k, v]) => [v, k]));

function kindOf(node) {
  return typeof node.Kind === 'number' ? kinds.get(node.Kind) : String(node.Kind);
}

/** A node as {kind, text of a token, type or columns of its result, children}. */
function dump(node) {
  const out = { kind: kindOf(node) };
  if (node.IsToken) {
    if (node.Text === '') return null;
    out.text = node.Text;
    return out;
  }
  const type = node.ResultType;
  if (type?.Columns) out.columns = list(type.Columns).map((c) => ({ name: c.Name, type: c.Type.Name }));
  else if (type) out.type = type.Name;
  out.children = [];
  for (let i = 0; i < node.ChildCount; i++) {
    const child = node.GetChild(i);
    const dumped = child ? dump(child) : null;
    if (dumped) out.children.push(dumped);
  }
  return out;
}

function analyse(input) {
  const tables = Object.entries(input.tables).map(([name, columns]) => new Symbols.TableSymbol.$ctor7(name, columns));
  const globals = GlobalState.Default.WithDatabase(new Symbols.DatabaseSymbol.ctor('workspace', tables));
  return input.queries.map((text) => {
    const code = KustoCode.ParseAndAnalyze(text, globals);
    const diagnostics = list(code.GetDiagnostics()).map((d) => {
      const before = text.slice(0, d.Start).split('\n');
      return { line: before.length, column: before.at(-1).length + 1, severity: d.Severity, code: d.Code, message: d.Message };
    });
    if (code.Kind === 'Command') diagnostics.push({ line: 1, column: 1, severity: 'Error', code: 'command', message: 'a management command is no query' });
    else if (!code.ResultType) diagnostics.push({ line: 1, column: 1, severity: 'Error', code: 'empty', message: 'there is no query' });
    return { diagnostics, tree: dump(code.Syntax) };
  });
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  process.stdout.write(JSON.stringify(analyse(JSON.parse(line))) + '\n');
});
