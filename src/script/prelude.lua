-- Builds the globals of scripts from Lua's own and from the functions of Rust, and runs scripts.
--
-- What scripts share is read-only: a script sees an empty table whose metatable looks into the real
-- one and refuses writes. Errors of Rust are values that only Rust understands, so every function
-- that catches an error translates it. A script that has to stop gets no error caught.
--
-- Only locals are used here: a script cannot reach them.

local native, stock, libraries, loads = ...

local error, type, tostring, select = stock.error, stock.type, stock.tostring, stock.select
local next, pairs, rawget, rawset = stock.next, stock.pairs, stock.rawget, stock.rawset
local getmetatable, setmetatable = stock.getmetatable, stock.setmetatable
local pcall, xpcall, load, loadstring = stock.pcall, stock.xpcall, stock.load, stock.loadstring
local collectgarbage, unpack, setfenv = stock.collectgarbage, stock.unpack, stock.setfenv
local resume, concat, gsub = stock.coroutine.resume, stock.table.concat, stock.string.gsub
local stock_find, lower = stock.string.find, stock.string.lower
local stock_byte, stock_match = stock.string.byte, stock.string.match
local check, translate, place = native.check, native.translate, native.place

local READ_ONLY = 'Attempt to modify a readonly table'

-- ---- what is read-only ----

-- The real table of each empty one.
local real = setmetatable({}, { __mode = 'k' })

local function refuse()
  error(READ_ONLY, 2)
end

local function protect(table, metatable)
  local empty = {}
  real[empty] = table
  return setmetatable(empty, { __index = table, __newindex = refuse, __metatable = metatable })
end

local locked = protect({})
getmetatable(locked).__metatable = locked

-- ---- what catches errors ----

-- What a script sees of an error that it caught.
local function caught(err)
  if type(err) == 'userdata' then
    err = translate(err)
  elseif err == 'not enough memory' then
    native.out_of_memory()
  elseif type(err) == 'string' then
    err = gsub(err, '^prelude:%d+: ', '')
  end
  check()
  return err
end

local function text_of(err)
  err = caught(err)
  if type(err) == 'table' then
    local text = rawget(err, 'err')
    if type(text) == 'string' then
      return text
    end
  end
  return err
end

local function protected(ok, ...)
  if ok then
    return true, ...
  end
  return false, text_of((...))
end

local function resumed(ok, ...)
  if ok then
    return true, ...
  end
  return false, caught((...))
end

-- ---- the globals ----

local globals = {}

for _, name in pairs({
  'assert', 'error', 'gcinfo', 'getmetatable', 'ipairs', 'next', 'rawequal', 'select', 'tonumber',
  'tostring', 'type', 'unpack', '_VERSION',
}) do
  globals[name] = stock[name]
end

function globals.pcall(...)
  return protected(pcall(...))
end

function globals.xpcall(body, handler)
  return protected(xpcall(body, function(err)
    return handler(caught(err))
  end))
end

function globals.rawget(table, key)
  return (rawget(real[table] or table, key))
end

function globals.rawset(table, key, value)
  if real[table] then
    error(READ_ONLY, 0)
  end
  return (rawset(table, key, value))
end

function globals.setmetatable(table, metatable)
  if real[table] then
    error(READ_ONLY, 0)
  end
  if type(metatable) == 'table' and rawget(metatable, '__gc') ~= nil then
    error('a metatable of a script has no __gc', 0)
  end
  return (setmetatable(table, metatable))
end

function globals.pairs(table)
  local within = real[table]
  if within then
    return function(_, key)
      return next(within, key)
    end, table, nil
  end
  if type(table) ~= 'table' then
    local kind = table == nil and 'nil' or type(table)
    error("bad argument #1 to 'pairs' (table expected, got " .. kind .. ')', 2)
  end
  return next, table, nil
end

-- Code that was compiled before is not loaded: it could do anything.
function globals.loadstring(code, name)
  if type(code) == 'number' then
    code = tostring(code)
  end
  if type(code) == 'string' and stock_byte(code, 1) == 27 then
    local source = name or stock_match(code, '^[^%z]*')
    return nil, '[string "' .. source .. '"]:1: unexpected symbol near \'char(27)\''
  end
  local loaded, err = loadstring(code, name)
  if loaded == nil then
    return nil, caught(err)
  end
  return loaded
end

function globals.load(reader, name)
  local parts = {}
  while true do
    local part = reader()
    if part == nil or part == '' then
      break
    end
    if type(part) ~= 'string' then
      return nil, 'reader function must return a string'
    end
    parts[#parts + 1] = part
  end
  return globals.loadstring(concat(parts), name or '=(load)')
end

-- A script cannot turn the collector off.
function globals.collectgarbage(option, argument)
  if option == 'stop' or option == 'restart' then
    return 0
  elseif option == 'setpause' or option == 'setstepmul' then
    return 200
  end
  if option ~= nil and option ~= 'count' and option ~= 'collect' and option ~= 'step' then
    error("bad argument #1 to 'collectgarbage' (invalid option '" .. tostring(option) .. "')", 2)
  end
  return (collectgarbage(option, argument))
end

-- ---- libraries ----

local function library(name, from)
  globals[name] = protect(from, locked)
end

local strings = {}
for _, name in pairs({ 'byte', 'char', 'dump', 'format', 'len', 'sub' }) do
  strings[name] = stock.string[name]
end
for _, name in pairs({ 'rep', 'find', 'match', 'gsub', 'lower', 'upper', 'reverse' }) do
  strings[name] = native[name]
end

local function one_match(state, after, ...)
  if after == nil then
    return nil
  end
  state.at = after
  return ...
end

function strings.gmatch(text, pattern)
  native.check_text(text, pattern)
  local state = { at = 0 }
  return function()
    if state.at == nil then
      return nil
    end
    return one_match(state, native.gmatch_next(text, pattern, state.at))
  end
end
strings.gfind = strings.gmatch

local coroutines = {}
for _, name in pairs({ 'create', 'running', 'status', 'wrap', 'yield' }) do
  coroutines[name] = stock.coroutine[name]
end
function coroutines.resume(...)
  return resumed(resume(...))
end

local maths = {}
for name, value in pairs(stock.math) do
  maths[name] = value
end
maths.random, maths.randomseed = native.random, native.randomseed

local tables = {}
for name, value in pairs(stock.table) do
  tables[name] = value
end

-- A call may take long, so the script is stopped before it, if it has to stop.
local sort = stock.table.sort
function tables.sort(...)
  check()
  return sort(...)
end
tables.concat = native.concat

library('string', strings)

-- What a script sees of the metatable of strings leads to the read-only table.
local of_strings = getmetatable('')
of_strings.__index = strings
of_strings.__metatable = protect({ __index = globals.string }, locked)

library('coroutine', coroutines)
library('math', maths)
library('table', tables)
for name, from in pairs(libraries) do
  library(name, from)
end

local scripts = protect(globals, locked)
globals._G = scripts

local function nonexistent(name)
  error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 3)
end

setmetatable(globals, {
  __index = function(_, name)
    nonexistent(name)
  end,
})

-- ---- running ----

-- What the reply of a script that failed is made of.
local function failed(err)
  if type(err) == 'userdata' then
    err = translate(err)
  elseif err == 'not enough memory' then
    native.out_of_memory()
  end
  local source, line = place()
  if type(err) ~= 'table' then
    local caller = line and gsub(source, '^@', '') .. ':' .. line .. ': ' or ''
    local text = gsub(tostring(err), '^prelude:%d+: ', caller)
    return { err = 'ERR ' .. text, source = source, line = line }
  end
  return {
    err = rawget(err, 'err'),
    ignore_error_stats_update = rawget(err, 'ignore_error_stats_update'),
    source = source,
    line = line,
  }
end

-- Takes back what a script may have put into a table that is there to be empty, with functions
-- such as table.insert.
local function clean()
  for empty in next, real do
    local key = next(empty)
    while key ~= nil do
      rawset(empty, key, nil)
      key = next(empty)
    end
  end
end

-- ---- libraries of functions ----

-- What the library that is being loaded has registered.
local registered

local function refused(text)
  error({ err = 'ERR ' .. text }, 0)
end

local bits = {
  ['no-writes'] = 1, ['allow-oom'] = 2, ['allow-stale'] = 4, ['no-cluster'] = 8,
  ['allow-cross-slot-keys'] = 16,
}

local function is_text(value)
  return type(value) == 'string' or type(value) == 'number'
end

local function flags_of(names)
  if type(names) ~= 'table' then
    refused('flags argument to redis.register_function must be a table representing function flags')
  end
  local flags, met = 0, {}
  for place = 1, #names do
    local bit = bits[names[place]]
    if not bit then
      refused('unknown flag given')
    elseif not met[bit] then
      met[bit], flags = true, flags + bit
    end
  end
  return flags
end

local function named(given)
  local of = { flags = 0 }
  for key, value in next, given do
    if not is_text(key) then
      refused('named argument key given to redis.register_function is not a string')
    end
    key = lower(tostring(key))
    if key == 'function_name' or key == 'description' then
      if not is_text(value) then
        refused(key .. ' argument given to redis.register_function must be a string')
      end
      of[key] = tostring(value)
    elseif key == 'callback' then
      if type(value) ~= 'function' then
        refused('callback argument given to redis.register_function must be a function')
      end
      of.callback = value
    elseif key == 'flags' then
      of.flags = flags_of(value)
    else
      refused('unknown argument given to redis.register_function')
    end
  end
  if not of.function_name then
    refused('redis.register_function must get a function name argument')
  elseif not of.callback then
    refused('redis.register_function must get a callback argument')
  end
  return of
end

function loads.register_function(...)
  local count, first, second = select('#', ...), ...
  local of
  if not registered then
    refused('redis.register_function can only be called on FUNCTION LOAD command')
  elseif count < 1 or count > 2 then
    refused('wrong number of arguments to redis.register_function')
  elseif count == 1 then
    if type(first) ~= 'table' then
      refused('calling redis.register_function with a single argument is only applicable to Lua table '
        .. '(representing named arguments).')
    end
    of = named(first)
  elseif not is_text(first) then
    refused('first argument to redis.register_function must be a string')
  elseif type(second) ~= 'function' then
    refused('second argument to redis.register_function must be a function')
  else
    of = { function_name = tostring(first), callback = second, flags = 0 }
  end
  if not stock_find(of.function_name, '^[%w_]+$') then
    refused('Library names can only contain letters, numbers, or underscores(_) '
      .. 'and must be at least one character long')
  end
  for _, other in next, registered do
    if other.function_name == of.function_name then
      refused('Function already exists in the library')
    end
  end
  registered[#registered + 1] = of
end

-- A table that has nothing but this.
local function only(within)
  local empty = {}
  real[empty] = within
  return setmetatable(empty, {
    __index = function(_, name)
      local value = rawget(within, name)
      if value == nil then
        nonexistent(name)
      end
      return value
    end,
    __newindex = refuse,
    __metatable = locked,
  })
end

local while_loading = { redis = only(loads) }

-- Loads a library. While that lasts, it finds nothing but what registers functions. Its functions
-- find what scripts find.
local function load_library(chunk)
  clean()
  local within = while_loading
  local env = {}
  real[env] = globals
  setmetatable(env, {
    __index = function(_, name)
      local value = rawget(within, name)
      if value == nil then
        nonexistent(name)
      end
      return value
    end,
    __newindex = refuse,
    __metatable = locked,
  })
  setfenv(chunk, env)
  registered = {}
  local ok, result = xpcall(chunk, failed)
  if ok then
    result = registered
  end
  registered = nil
  within = globals
  clean()
  return ok, result
end

local function call(callback, keys, arguments)
  -- What was stopped may not have been cleaned up after.
  clean()
  registered = nil
  local ok, result = xpcall(function()
    return callback(keys, arguments)
  end, failed)
  clean()
  return ok, result
end

local function run(script, keys, arguments)
  registered = nil
  -- A script that was stopped may not have been cleaned up after.
  clean()
  globals.KEYS, globals.ARGV = keys, arguments
  local ok, result = xpcall(script, failed)
  globals.KEYS, globals.ARGV = nil, nil
  clean()
  return ok, result
end

return scripts, run, load_library, call
