// Spring Session: sessions that two nodes share, found by a user's name, and events of their end.
import org.springframework.data.redis.connection.lettuce.LettuceConnectionFactory;
import org.springframework.data.redis.core.RedisTemplate;
import org.springframework.data.redis.listener.ChannelTopic;
import org.springframework.data.redis.listener.PatternTopic;
import org.springframework.data.redis.listener.RedisMessageListenerContainer;
import org.springframework.data.redis.serializer.RedisSerializer;
import org.springframework.session.FindByIndexNameSessionRepository;
import org.springframework.session.Session;
import org.springframework.session.SessionRepository;
import org.springframework.session.data.redis.RedisIndexedSessionRepository;
import org.springframework.session.data.redis.RedisSessionRepository;
import org.springframework.session.events.AbstractSessionEvent;
import org.springframework.session.events.SessionCreatedEvent;
import org.springframework.session.events.SessionDeletedEvent;
import org.springframework.session.events.SessionExpiredEvent;

import java.net.URI;
import java.time.Duration;
import java.util.concurrent.ConcurrentLinkedQueue;

class SpringSession {
    static void run(URI first, URI second) throws Exception {
        LettuceConnectionFactory here = SpringData.factory(first);
        LettuceConnectionFactory there = SpringData.factory(second);
        plain(here, there);
        indexed(here, there);
        here.destroy();
        there.destroy();
    }

    private static RedisTemplate<String, Object> template(LettuceConnectionFactory factory) {
        RedisTemplate<String, Object> template = new RedisTemplate<>();
        template.setKeySerializer(RedisSerializer.string());
        template.setHashKeySerializer(RedisSerializer.string());
        template.setConnectionFactory(factory);
        template.afterPropertiesSet();
        return template;
    }

    private static void plain(LettuceConnectionFactory here, LettuceConnectionFactory there)
            throws Exception {
        RedisSessionRepository mine = new RedisSessionRepository(template(here));
        RedisSessionRepository theirs = new RedisSessionRepository(template(there));
        mine.setRedisKeyNamespace("plain");
        theirs.setRedisKeyNamespace("plain");
        shared(mine, theirs);
    }

    private static <S extends Session> void shared(
            SessionRepository<S> mine, SessionRepository<S> theirs) throws Exception {
        S session = mine.createSession();
        session.setAttribute("cart", "book");
        mine.save(session);
        Frameworks.eventually(
                "the session is there", () -> theirs.findById(session.getId()) != null);
        S found = theirs.findById(session.getId());
        Frameworks.same("book", found.getAttribute("cart"));
        String old = found.getId();
        String changed = found.changeSessionId();
        found.setAttribute("cart", "two books");
        theirs.save(found);
        Frameworks.eventually(
                "it has another id",
                () -> mine.findById(changed) != null && mine.findById(old) == null);
        Frameworks.same("two books", mine.findById(changed).getAttribute("cart"));
        mine.deleteById(changed);
        Frameworks.eventually("it is deleted", () -> theirs.findById(changed) == null);
    }

    // Its events come by keyspace events and messages, which it subscribes to on its own node.
    private static void indexed(LettuceConnectionFactory here, LettuceConnectionFactory there)
            throws Exception {
        ConcurrentLinkedQueue<Object> events = new ConcurrentLinkedQueue<>();
        RedisIndexedSessionRepository mine = repository(here);
        RedisIndexedSessionRepository theirs = repository(there);
        theirs.setApplicationEventPublisher(events::add);
        RedisMessageListenerContainer container = new RedisMessageListenerContainer();
        container.setConnectionFactory(there);
        try (var connection = there.getConnection()) {
            connection.serverCommands().setConfig("notify-keyspace-events", "Egx");
        }
        container.afterPropertiesSet();
        container.addMessageListener(theirs, new ChannelTopic(theirs.getSessionDeletedChannel()));
        container.addMessageListener(theirs, new ChannelTopic(theirs.getSessionExpiredChannel()));
        container.addMessageListener(
                theirs, new PatternTopic(theirs.getSessionCreatedChannelPrefix() + "*"));
        container.start();

        String name = FindByIndexNameSessionRepository.PRINCIPAL_NAME_INDEX_NAME;
        var session = mine.createSession();
        session.setAttribute(name, "ann");
        session.setMaxInactiveInterval(Duration.ofMinutes(10));
        mine.save(session);
        var brief = mine.createSession();
        brief.setAttribute(name, "ann");
        brief.setMaxInactiveInterval(Duration.ofSeconds(2));
        mine.save(brief);
        Frameworks.eventually(
                "two sessions of ann", () -> theirs.findByPrincipalName("ann").size() == 2);
        has(events, SessionCreatedEvent.class, session.getId());
        has(events, SessionExpiredEvent.class, brief.getId());
        Frameworks.eventually(
                "one session of ann", () -> theirs.findByPrincipalName("ann").size() == 1);
        Frameworks.check(mine.findById(brief.getId()) == null, "a session outlives its time");
        theirs.deleteById(session.getId());
        has(events, SessionDeletedEvent.class, session.getId());
        Frameworks.eventually("it is deleted", () -> mine.findById(session.getId()) == null);
        container.stop();
        container.destroy();
        mine.destroy();
        theirs.destroy();
    }

    private static RedisIndexedSessionRepository repository(LettuceConnectionFactory factory) {
        RedisIndexedSessionRepository repository =
                new RedisIndexedSessionRepository(template(factory));
        repository.setRedisKeyNamespace("indexed");
        repository.setDatabase(factory.getDatabase());
        repository.setCleanupCron("* * * * * *");
        repository.afterPropertiesSet();
        return repository;
    }

    private static void has(ConcurrentLinkedQueue<Object> events, Class<?> type, String id)
            throws Exception {
        Frameworks.eventually(
                type.getSimpleName(),
                () ->
                        events.stream()
                                .anyMatch(
                                        event ->
                                                type.isInstance(event)
                                                        && ((AbstractSessionEvent) event)
                                                                .getSessionId()
                                                                .equals(id)));
    }
}
